"""What localization lets a caller choose from; export and runtime hold the same lists."""

SCORES = ("cosine", "dot")
CAMS = ("gradcam", "hirescam")
LAYERS = ("normed", "output")
BASELINES = ("mean", "none")
SCALINGS = ("max", "minmax", "none")
FUSIONS = ("mean", "max", "others")
