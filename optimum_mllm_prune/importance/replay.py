"""Many small steps on a GPU, without telling it each of them anew."""

from collections.abc import Callable

import torch


def replayed(step: Callable[[], None], times: int, device: torch.device) -> None:
    """Do the same so many times, in order.

    A GPU ends a small step sooner than Python has asked for its kernels. So one step is recorded (as a CUDA graph),
    and that record is what is run again and again.

    Args:
        step: works on the same memory every time, and asks nothing of the device that Python would have to wait for.
        times: how often.
        device: the GPU.
    """
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Not recorded: libraries set themselves up in their first call.
            step()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
        with torch.cuda.stream(stream):
            for _ in range(times - 1):
                graph.replay()
        torch.cuda.current_stream().wait_stream(stream)
