"""What `marquee export` does and prints."""

from __future__ import annotations

from workflow import pipeline
from workflow.console import Output
from workflow.errors import ConfigError
from workflow.job import Job
from workflow.verbs import report_stages


def export_run(
    job: Job, output: Output, target: str, *, device: str | None, tensorrt: bool, force: bool
) -> None:
    """Export for one of the two targets.

    Args:
        target: embedded, or container, which is made from the embedded one.
        device, tensorrt: of the container target, as triton_repo.container says.
    Raises:
        ConfigError: options that do not go together.
    """
    if target == "embedded":
        if device is not None or tensorrt:
            raise ConfigError(
                "--device and --tensorrt are for a stock Triton; the server that comes with"
                " Marquee runs on the CPU",
                next_step=f"marquee export --run {job.run} --target container",
            )
        entries = pipeline.run_stages(job, output, ("export",), force=force)
        report_stages(job, output, entries, f"marquee serve --run {job.run}")
        return
    if tensorrt and device == "cpu":
        raise ConfigError("TensorRT needs a GPU", expected="--device gpu or auto", found="cpu")
    made = pipeline.export_container(
        job, output, device=device or "auto", tensorrt=tensorrt, force=force
    )
    done = f"Made {made['folder']}: {len(made['models'])} models, {made['megabytes']} MB."
    next_step = "docker compose -f docker/compose.yaml --profile cpu up (docker/README.md)"
    output.finish({"run": str(job.run), "container": made}, done, next_step)
