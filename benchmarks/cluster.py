"""``make cluster``: Spark clusters on this machine, and all five jobs on each by spark-submit.

examples:
    python -m benchmarks.cluster
    python -m benchmarks.cluster --on local-cluster
    python -m benchmarks.cluster --folder /data/rehearsal

``standalone`` is a master and two workers, on loopback, from the jars that PySpark brings; ``local-cluster`` is Spark's
own ``local-cluster[2,1,2048]``, which starts the same within the driver of each job. Each worker runs one executor of
one core in a folder of its own. Driver and executors share storage, and no current directory; the package travels as
an archive. Spark authenticates all of them and encrypts what they say. Each cluster builds a table of its own from the
same log, and a local session trains once more on the last: all losses must be the same. The cluster's secret may stand
in nothing that the jobs wrote. Clusters end with the process, whatever ends it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient

from benchmarks.small_flow import LENIENT, SmallFlow, write_flow
from benchmarks.spark_clusters import ROOT, Cluster, local_cluster, standalone_cluster

CLUSTERS = {"standalone": standalone_cluster, "local-cluster": local_cluster}


def rehearse(folder: Path, on: Sequence[str]) -> None:
    """All five jobs on each cluster, training again by a local session, and the comparison."""
    losses = {}
    for kind in on:
        flow = write_flow(folder / kind / "flow")
        with CLUSTERS[kind](folder / kind / "cluster") as cluster:
            sys.stdout.write(f"{cluster.master}\n")
            run_all(cluster, flow)
        counts = list(cluster.executors().values())
        sys.stdout.write(
            f"executors of {len(counts)} applications, each in a folder of its own: {sum(counts)}\n"
        )
        # A driver that ends stops its executors, then signs its application off (StandaloneSchedulerBackend.stop):
        # a master that hears of the first before the second starts others in their place.
        if not counts or min(counts) < 2:
            raise SystemExit("expected two executors of every job, each in a folder of its own")
        holders = holders_of(cluster.secret(), folder / kind)
        if holders != [cluster.folder / "spark.conf"]:
            raise SystemExit(f"the cluster's secret stands in {', '.join(map(str, holders))}")
        losses[kind] = losses_of(flow.tracking_uri, "cluster")
    config = ["--config", str(flow.config), "--set", "mlflow.run_name=local"]
    local = cluster.run([sys.executable, str(ROOT / "jobs" / "train.py"), *config])
    if local.returncode:
        raise SystemExit(f"train, locally:\n{local.stdout[-3000:]}\n{local.stderr[-5000:]}")
    losses["a local run"] = losses_of(flow.tracking_uri, "local")
    for place, found in losses.items():
        sys.stdout.write(f"losses of {place:<16}{found}\n")
    if any(found != losses["a local run"] or not found for found in losses.values()):
        raise SystemExit("the losses differ")


def run_all(cluster: Cluster, flow: SmallFlow) -> None:
    """All five jobs, one after the other; the first that fails ends this process."""
    config = ["--config", str(flow.config)]
    jobs = {
        "build_features": ["--contract", str(flow.contract), "--warehouse", str(flow.warehouse)],
        "train": [*config, "--set", "mlflow.run_name=cluster"],
        "evaluate": config,
        "promote": [*config, *LENIENT],
        "score": config,
    }
    for name, arguments in jobs.items():
        started = time.monotonic()
        done = cluster.submit(str(ROOT / "jobs" / f"{name}.py"), *arguments)
        sys.stdout.write(f"{name:<16}{'ok' if done.returncode == 0 else done.returncode}")
        sys.stdout.write(f"{time.monotonic() - started:8.1f} s\n")
        sys.stdout.flush()
        (cluster.folder / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            raise SystemExit(f"{name} on the cluster:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")


def holders_of(secret: str, folder: Path) -> list[Path]:
    """Files in which a secret stands."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if secret.encode() in path.read_bytes()]


def losses_of(tracking_uri: str, run_name: str) -> list[float]:
    """Training loss of each epoch of the run of this name."""
    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    run = client.search_runs(experiments, f"attributes.run_name = '{run_name}'")[0]
    return [point.value for point in client.get_metric_history(run.info.run_id, "train/loss")]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help="a new folder, kept; a temporary one where left out")
    parser.add_argument(
        "--on", nargs="+", choices=list(CLUSTERS), default=list(CLUSTERS), help="which clusters"
    )
    given = parser.parse_args()
    if given.folder is not None:
        rehearse(given.folder.resolve(), given.on)
        return
    with tempfile.TemporaryDirectory() as folder:
        rehearse(Path(folder), given.on)


if __name__ == "__main__":
    main()
