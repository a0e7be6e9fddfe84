"""Generated subjects with lesions: a cohort that needs no download and no patient.

``anatomy`` reads tissue maps, ``deformation`` bends them into a subject, ``ms_lesions`` and
``tumour`` place disease, ``confounders`` add what is bright but healthy, ``contrast`` turns all of
it into images, and ``cohort`` holds the case source. The numbers that tell the two presets apart
are in ``presets``. To add a preset, add one row to ``presets.PRESETS``.
"""
