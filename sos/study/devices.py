"""One run on several devices of this machine: fastai's distributed training over accelerate, one process a device.

`batch_size` stays the whole batch: each device takes its share of it, so that the run is the same run as on one device, up to the order of
sums. Batch norms see the whole batch on GPUs; on CPU processes, which torch cannot join for that, each sees its share only. A detector's loss is
divided by the cells inside of boxes, which each device counts in its share: its run is another one, as good.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pandas as pd
import torch
from fastai.distributed import DistributedTrainer

from ..cohort.batches import ViewLoader
from ..config import RunConfig, home
from ..errors import ConfigError, OutOfTime, RunError, SOSError
from ..files import end_with_parent
from .fitting import fit, network
from .runs import Run
from .training import Study

FITTED = "fitted.pt"  # network, history and seconds, handed back to the process that asked for them
FAILED = "failed.txt"  # or the one line that tells why not


class OneOfMany(DistributedTrainer):
    """fastai's trainer, which wraps the model for data-parallel training, and leaves the loaders alone: `ViewLoader` deals out shares itself."""

    def _wrap_dl(self, dl):
        return dl


def fit_on_devices(study: Study, config: RunConfig, checkpoint: Path, teacher: Run | None):
    """`fitting.fit` by `study.devices` processes; returns the same and raises OutOfTime alike.

    Raises ConfigError for more devices than there are, a batch that they cannot share, or a run in which some weights have no gradient (torch's
    data-parallel training waits for that of each); RunError where one of the processes fails.
    """
    devices, cuda = study.devices, study.device.startswith("cuda")
    if devices < 1 or (cuda and devices > torch.cuda.device_count()):
        raise ConfigError(f"--devices {devices}: this machine has {torch.cuda.device_count() if cuda else 'only its CPU'}; give 1 or more of them")
    if config.progressive or config.role == "student" and not config.w_cls and not config.w_dist:
        which = "with blocks asleep (progressive)" if config.progressive else "without L_cls and L_dist"
        raise ConfigError(f"--devices {devices}: a run {which} leaves weights without a gradient; train it on one device")
    train = study.cohort.subset("train").index.to_numpy()
    ViewLoader(study.store, train, config, training=True, share=(0, devices))  # raises here, once, what each process would
    threads = max(1, torch.get_num_threads() // devices)
    environment = {**os.environ, "SOS_HOME": str(home().resolve()), "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": str(not cuda).lower()}
    with tempfile.TemporaryDirectory() as folder:
        order, fitted, failed = Path(folder) / "order.pickle", Path(folder) / FITTED, Path(folder) / FAILED
        order.write_bytes(pickle.dumps((study.profile, study.manifest, config, checkpoint, teacher)))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(devices), "-m", __name__, str(order)]
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as ranks:  # stdin is open as long as this process lives
            status = ranks.wait()
        if status != 0:
            raise RunError(f"training the {config.role} on {devices} devices failed, see above; the same command goes on from its last epoch")
        if failed.is_file():
            raise RunError(failed.read_text())
        if not fitted.is_file():
            raise OutOfTime(f"stopped in time while training the {config.role} on {devices} devices; the next call goes on")
        state = torch.load(fitted, map_location=study.device, weights_only=True)
    net = network(config, len(study.cohort.scheme), study.device)
    net.load_state_dict(state["net"])
    return net.eval(), pd.DataFrame(state["history"]), state["seconds"]


def main() -> None:
    """One of the processes, as torchrun starts them: trains its share; the first keeps what came of it beside the order."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    profile, manifest, config, checkpoint, teacher = pickle.loads(Path(sys.argv[1]).read_bytes())
    rank, ranks, device = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "cpu"
    if os.environ["ACCELERATE_USE_CPU"] != "true":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    study = Study(profile, manifest or "", device)
    try:
        net, history, seconds = fit(config, study.store, study.cohort, checkpoint, teacher, device, (rank, ranks))
    except OutOfTime:  # all of them at the same epoch
        return
    except SOSError as error:  # a user's error, which all of them find
        if rank == 0:
            Path(sys.argv[1]).with_name(FAILED).write_text(str(error).splitlines()[-1].strip())
        return
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if rank == 0:
        state = {"net": net.state_dict(), "history": history.to_dict("records"), "seconds": seconds}
        torch.save(state, Path(sys.argv[1]).with_name(FITTED))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is written: an ordinary end now and then aborts in the threads that torch's process group leaves behind
