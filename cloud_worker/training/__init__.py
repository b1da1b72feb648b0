"""Training and measuring: it happens in the cloud, the device only predicts.

In: SQuAD files and a model folder. Out: a trained, evaluated, calibrated model folder.
Path: `squad_files` -> `negatives` -> `features` -> `batches` -> `objective` -> `trainer`, then
`evaluation` and `calibration`. Neighbours: imports `reader` only.
"""
