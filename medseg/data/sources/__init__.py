"""Data sets on disk, one module each.

To add one: write ``<name>.py`` here with a settings class and a class that keeps the promises of
:class:`medseg.data.source.CaseSource` (``layout.py`` finds the files and names the subjects,
``reading.py`` reads and checks a case), give it a line in the catalogue and a YAML under
``configs/data``. The contract test of case sources then runs over it.
"""
