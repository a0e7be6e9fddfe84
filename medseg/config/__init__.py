"""From YAML to built objects: schema, catalogue of names, loading with overrides.

To add a data set, network or prior to the command line: one line in
:mod:`medseg.config.catalog`, and one YAML under ``configs/``. A kind of data whose labels are in
``DEFINITIONS`` there is also recognised in a bare folder, see :mod:`medseg.config.folder`.
"""
