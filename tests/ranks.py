"""Started by torchrun from test_devices: one of the processes that fit a student together, with batch norms frozen and as they are."""

import os
import pickle
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


def frozen_norm(self, x):
    """A batch norm that looks at no batch: what it does to an image does not depend on the others."""
    return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def main():
    from sos.study.fitting import fit

    study, config, teacher = pickle.loads(Path(sys.argv[1]).read_bytes())
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    usual = nn.BatchNorm2d.forward
    for name, forward in (("usual", usual), ("frozen", frozen_norm)):
        nn.BatchNorm2d.forward = forward
        net, history, _ = fit(config, study.store, study.cohort, Path(sys.argv[1]).with_name(f"{name}.pt"), teacher, "cpu", (rank, ranks))
        torch.save({"net": net.state_dict(), "history": history.to_dict("list")}, Path(sys.argv[1]).with_name(f"{name}-{rank}.pt"))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
    os._exit(0)  # see sos.study.devices
