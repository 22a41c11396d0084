"""One thread and no network, for every test and the processes that it starts."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch


torch.set_num_threads(1)
