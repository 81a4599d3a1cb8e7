"""The one table of GPUs: what plans and predictions know of a card that is not in this machine.

`memory_bytes` is what CUDA can hand out (`cudaGetDeviceProperties`, `total_memory` in torch), which is less than the
name says: ECC and the driver keep a part. It was printed by one driver, named in `memory_source`; other drivers differ
by some tens of MiB, and on the machine itself `machine.gpu()` asks. Arithmetic rates are dense (NVIDIA's figures with
sparsity are twice these), accumulated in fp32, from NVIDIA's datasheets. Unknown is None.
"""

from dataclasses import dataclass

from labkit.errors import RequestError
from labkit.units import MIB

DEFAULT = "h200"  # what is planned for where nothing is named and this machine has no GPU
_DEVICE_QUERY = "deviceQuery of NVIDIA's CUDA samples"
_TORCH = "torch.cuda.get_device_properties, which prints whole MiB"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One card. Rates in FLOP/s and bytes/s. `words` all occur in the driver's name for the card, in small letters.

    `context_bytes`: what the process takes beside torch's reserved memory (CUDA context, kernels, library handles)
    after training steps, where it was measured; it differs by driver and torch build: measure it on the card itself.
    """

    name: str
    title: str
    words: tuple[str, ...]
    memory_bytes: int
    memory_source: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory_bandwidth_bytes_per_second: float
    fp16_flops_per_second: float | None
    bf16_flops_per_second: float | None
    datasheet: str
    context_bytes: int | None = None
    context_source: str | None = None


GPUS = (
    Gpu(
        name="t4",
        title="NVIDIA T4",
        words=("t4",),
        memory_bytes=15_642_329_088,
        memory_source=f"{_DEVICE_QUERY}, CUDA 12.4 and 12.5 drivers",
        compute_capability=(7, 5),
        multiprocessors=40,
        memory_bandwidth_bytes_per_second=320e9,
        fp16_flops_per_second=65e12,
        bf16_flops_per_second=None,  # Turing's tensor cores have no bf16
        datasheet="NVIDIA T4 70W Low Profile PCIe GPU Accelerator, product brief",
        context_bytes=147_718_144,
        context_source="fitcheck-llm 0.3.1 (MIT), data/measurements: 140.875 MiB after the steps of 69 of 79 runs",
    ),
    Gpu(
        name="l4",
        title="NVIDIA L4",
        words=("l4",),
        memory_bytes=23_583_784_960,
        memory_source=f"{_DEVICE_QUERY}, CUDA 12.2 driver",
        compute_capability=(8, 9),
        multiprocessors=58,
        memory_bandwidth_bytes_per_second=300e9,
        fp16_flops_per_second=121e12,
        bf16_flops_per_second=121e12,
        datasheet="NVIDIA L4 Tensor Core GPU datasheet (242 TFLOPS with sparsity)",
    ),
    Gpu(
        name="a10g",
        title="NVIDIA A10G",
        words=("a10g",),
        memory_bytes=22_587 * MIB,
        memory_source=f"{_TORCH}, torch 2.15 nightly for CUDA 13.0",
        compute_capability=(8, 6),
        multiprocessors=80,
        memory_bandwidth_bytes_per_second=600e9,
        fp16_flops_per_second=70e12,
        bf16_flops_per_second=70e12,
        datasheet="NVIDIA A10G datasheet, as published by AWS for its G5 instances (140 TFLOPS with sparsity)",
    ),
    Gpu(
        name="rtx3060-12gb",
        title="NVIDIA GeForce RTX 3060 12 GB",
        words=("rtx", "3060"),
        memory_bytes=11_901 * MIB,
        memory_source=f"{_DEVICE_QUERY}, CUDA 13.0 driver (whole MiB)",
        compute_capability=(8, 6),
        multiprocessors=28,
        memory_bandwidth_bytes_per_second=360e9,
        fp16_flops_per_second=None,  # NVIDIA publishes no dense figure with fp32 accumulation for this card
        bf16_flops_per_second=None,
        datasheet="NVIDIA GeForce RTX 3060 specifications (192 bit at 15 Gbit/s)",
    ),
    Gpu(
        name="rtx4090",
        title="NVIDIA GeForce RTX 4090",
        words=("rtx", "4090"),
        memory_bytes=25_386_352_640,
        memory_source=f"{_DEVICE_QUERY}, CUDA 12.4 driver",
        compute_capability=(8, 9),
        multiprocessors=128,
        memory_bandwidth_bytes_per_second=1008e9,
        fp16_flops_per_second=165.2e12,
        bf16_flops_per_second=165.2e12,
        datasheet="NVIDIA Ada GPU architecture whitepaper, appendix A (330.3 TFLOPS with sparsity)",
    ),
    Gpu(
        name="l40s",
        title="NVIDIA L40S",
        words=("l40s",),
        memory_bytes=45_589 * MIB,
        memory_source=_TORCH,
        compute_capability=(8, 9),
        multiprocessors=142,
        memory_bandwidth_bytes_per_second=864e9,
        fp16_flops_per_second=362.05e12,
        bf16_flops_per_second=362.05e12,
        datasheet="NVIDIA L40S datasheet (733 TFLOPS with sparsity)",
    ),
    Gpu(
        name="a100-40gb",
        title="NVIDIA A100 40 GB",
        words=("a100", "40gb"),
        memory_bytes=42_298_834_944,
        memory_source=f"{_DEVICE_QUERY}, A100-SXM4-40GB, CUDA 12.2 driver",
        compute_capability=(8, 0),
        multiprocessors=108,
        memory_bandwidth_bytes_per_second=1555e9,
        fp16_flops_per_second=312e12,
        bf16_flops_per_second=312e12,
        datasheet="NVIDIA A100 Tensor Core GPU datasheet (624 TFLOPS with sparsity)",
    ),
    Gpu(
        name="a100-80gb",
        title="NVIDIA A100 80 GB",
        words=("a100", "80gb"),
        memory_bytes=84_987_740_160,
        memory_source=f"{_DEVICE_QUERY}, A100-SXM4-80GB, CUDA 12.2 driver",
        compute_capability=(8, 0),
        multiprocessors=108,
        memory_bandwidth_bytes_per_second=2039e9,
        fp16_flops_per_second=312e12,
        bf16_flops_per_second=312e12,
        datasheet="NVIDIA A100 Tensor Core GPU datasheet, SXM (the PCIe card: 1935 GB/s)",
    ),
    Gpu(
        name="h100",
        title="NVIDIA H100 80 GB SXM",
        words=("h100", "80gb"),
        memory_bytes=85_028_896_768,
        memory_source=f"{_DEVICE_QUERY}, H100 80GB HBM3, CUDA 12.8 driver",
        compute_capability=(9, 0),
        multiprocessors=132,
        memory_bandwidth_bytes_per_second=3350e9,
        fp16_flops_per_second=989.5e12,
        bf16_flops_per_second=989.5e12,
        datasheet="NVIDIA H100 Tensor Core GPU datasheet, SXM (1,979 TFLOPS with sparsity)",
    ),
    Gpu(
        name="h200",
        title="NVIDIA H200 SXM",
        words=("h200",),
        memory_bytes=143_156 * MIB,
        memory_source=_TORCH,
        compute_capability=(9, 0),
        multiprocessors=132,
        memory_bandwidth_bytes_per_second=4800e9,
        fp16_flops_per_second=989.5e12,
        bf16_flops_per_second=989.5e12,
        datasheet="NVIDIA H200 Tensor Core GPU datasheet, SXM (1,979 TFLOPS with sparsity)",
    ),
)


def find(name: str) -> Gpu:
    """The card of that short name; RequestError lists the names."""
    for gpu in GPUS:
        if gpu.name == str(name).lower():
            return gpu
    raise RequestError(f"The GPU {name!r} is not known; the known ones are {', '.join(gpu.name for gpu in GPUS)}.")


def match(cuda_name: str, total_bytes: int | None = None) -> Gpu | None:
    """The card that the driver calls so (`NVIDIA A100-SXM4-80GB` -> a100-80gb); None for a card not in the table.

    `total_bytes`, where given, must be within a tenth of the card's: an RTX 3060 with 8 GB has the same name.
    """
    words = set(cuda_name.lower().replace("-", " ").split())
    if words & {"ti", "laptop", "d", "super", "nvl", "mig"}:  # other cards that share the words
        return None
    for gpu in GPUS:
        right_size = total_bytes is None or abs(total_bytes - gpu.memory_bytes) < gpu.memory_bytes / 10
        if words.issuperset(gpu.words) and right_size:
            return gpu
    return None
