"""What options can name, and the most they can ask for, without importing what knows it: torch takes seconds.

Each is said again by its owner, named behind it; a test compares them.
"""

DATA_SETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")  # data.DATASET_NAMES
FILES = ".npz"  # data.formats.FILES
PICTURES = "JPEG, PNG, WebP, BMP or TIFF"  # data.decode.KINDS
FAMILIES = {  # models.FAMILIES, and the geometries of each
    "mobilenet_v3": ("paper", "cifar", "tiny", "light"),
    "proxyless_nas": ("paper", "tiny"),
    "resnet": ("light", "wide", "deep"),
}
DEFAULT_FAMILY = "mobilenet_v3"  # models.MobileNetV3.family
OFA_NETWORKS = (  # models.ofa.OFA_NETWORKS and OFA_RESNET
    "ofa_mbv3_d234_e346_k357_w1.0",
    "ofa_mbv3_d234_e346_k357_w1.2",
    "ofa_proxyless_d234_e346_k357_w1.3",
    "ofa_resnet50",
)
OFA_RESOLUTIONS = (128, 160, 192, 224)  # models.ofa.OFA_RESOLUTIONS
STUDIES = ("tuning", "baseline", "dose", "solo", "factorial", "geometry")  # lab.studies.built_in.STUDIES
RESOURCES = ("macs", "params", "latency", "memory", "size")  # search.resources.NAMES
TARGETS = (  # export.TARGETS
    *("onnx", "onnx-fp16", "onnx-int8", "openvino", "openvino-int8", "executorch", "executorch-int8"),
    *("litert", "litert-fp16", "litert-int8", "ncnn", "ncnn-fp16", "tflite-micro", "coreml", "torch"),
)
RUNTIMES = ("onnxruntime", "torch", "openvino", "litert", "litert-int8", "ncnn")  # latency.RUNTIMES
LOCAL = "local"  # parallel.fan_out.LOCAL
DEVICES = ("browser", "cortex-m7", "desktop", "phone", "raspberry-pi", "server")  # pipeline.devices.BUILT_IN

MOST_PER_BUCKET = 100_000  # evaluation.population.MOST_PER_BUCKET
MOST_PROBES = 1000  # lab.measures.forgetting.MOST_PROBES
MOST_SCORES = 1_000_000  # search.algorithm.MOST_SCORES
MOST_THREADS = 1024  # latency.table.MOST_THREADS
MOST_BATCH = 4096  # latency.table.MOST_BATCH
LONGEST_SCALE = 1000.0  # lab.studies.study.LONGEST_SCALE
MOST_SEEDS = 1000  # lab.studies.study.MOST_SEEDS
