"""Training and measuring: it happens in the cloud, the device only predicts.

In: SQuAD files and a model folder. Out: a trained, evaluated, calibrated model folder.
Path: `squad_files` -> `negatives` -> `features` -> `batches` -> `objective` -> `run` -> `trainer`,
then `evaluation` and `calibration`. A run that compresses has `pruning`, `learned_spans` and
`distillation` around its steps (`compressing`) and ends with a smaller network (`cutting`).
Neighbours: imports `reader` only.
"""
