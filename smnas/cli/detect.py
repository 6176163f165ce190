"""``smnas detect``: boxes as JSON, as COCO results, and drawn on images and videos."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from profiler.errors import UserError
from smnas.cli.terminal.console import Output, show_lines, show_table
from smnas.cli.terminal.options import ModelOption, OutputOptions, examples
from smnas.cli.terminal.progress import PhaseSteps

if TYPE_CHECKING:
    from smnas.inference.results import DetectReport, FrameResult, ImageResult, VideoResult

__all__ = ["EXAMPLES", "DetectOptions", "detect"]

EXAMPLES = examples(
    "smnas detect --model quickstart photo.jpg",
    "smnas-detect --model my-model/model.onnx --score 0.5 --out drawn one.jpg two.png --json",
    "smnas detect --model my-run --out drawn clip.mp4",
    "smnas detect --model my-run --camera 0 --frames 300 --out drawn",
    "smnas detect --model my-run --coco results.json --annotations annotations/instances_val.json val",
)


@dataclass(frozen=True, kw_only=True)
class DetectOptions(OutputOptions):
    """Options of ``smnas detect``."""

    model: ModelOption
    images: Annotated[list[str] | None, typer.Argument(metavar="IMAGE...", show_default=False)] = None
    camera: Annotated[int | None, typer.Option(min=0, metavar="N")] = None
    score: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None
    batch: Annotated[int | None, typer.Option(min=1, metavar="N")] = None
    workers: Annotated[int, typer.Option(min=0)] = 2
    quick_decode: Annotated[bool, typer.Option("--quick-decode")] = False
    runtime: Annotated[str | None, typer.Option(metavar="NAME")] = None
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Of OpenVINO: cpu, gpu or npu.")] = None
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph")] = False
    frames: Annotated[int | None, typer.Option(min=1)] = None
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR")] = None
    coco: Annotated[Path | None, typer.Option(metavar="FILE")] = None
    annotations: Annotated[Path | None, typer.Option(metavar="FILE")] = None


def detect(options: DetectOptions) -> None:
    """Find objects in images, videos and camera streams.

    Lists the detections of every image, best first: class, score and box (left, top, right, bottom in pixels of the
    image); the number of objects of each class in every video; and the time of each stage. --out draws them on copies.
    --json writes everything as one document, each frame of a video with its index and its time in seconds.

    Videos need PyAV, the extra `video`. Ctrl-C keeps what is finished.
    """
    with Output.open(as_json=options.as_json, quiet=options.quiet) as output:
        from smnas import api

        with PhaseSteps(output) as steps:

            def on_image(result: "ImageResult", done: int, total: int) -> None:
                steps.step("images", done, total, result.path.name)

            def on_frame(result: "FrameResult", source: str, total: int | None) -> None:
                steps.step(f"frames of {source}", result.frame + 1, total, f"{len(result.detections)} objects")

            report = api.detect(**options.values(), keep_frames=options.as_json, on_image=on_image, on_frame=on_frame)
        for remark in report.remarks:
            output.note(remark)
        if report.times.images or options.as_json:  # programs expect a document even if nothing could be read
            usual = api.DEFAULT_SCORE if options.coco is None else 0.0
            lowest = usual if options.score is None else options.score
            output.result(report.to_dict(), lambda console: _show(console, report, lowest))
        errors = report.errors
        for line in errors if len(errors) > 1 else ():
            output.messages.print(Text(line), soft_wrap=True)
    if report.interrupted:
        raise KeyboardInterrupt
    if errors:
        total = len(report.images) + len(report.videos)
        many = f"every image and video must be readable, but {len(errors)} of {total} are not: " if total > 1 else ""
        raise UserError(many + errors[0])


def _show(console: Console, report: "DetectReport", score: float) -> None:
    rows = [
        [str(image.path), found.name, found.score, *(round(edge) for edge in found.box)]
        for image in report.images
        for found in image.detections
    ]
    if rows:
        show_table(console, ["image", "class", "score", "left", "top", "right", "bottom"], rows)
    elif report.images:
        console.print(f"nothing was found with a score of {score:g} or more")
    lines = [_video_line(video) for video in report.videos if video.count]
    drawn = [image.drawn for image in report.images] + [video.drawn for video in report.videos]
    lines += [f"drawn: {path}" for path in drawn if path is not None]
    times = report.times
    lines.append(f"speed: {times.images} images in {times.wall_s:.2f} s, {times.images_per_s:.1f} images/s")
    stages = ", ".join(f"{stage} {ms:.2f}" for stage, ms in times.ms_per_image().items())
    lines.append(f"ms an image, in stages that overlap: {stages}")
    show_lines(console, *lines)


def _video_line(video: "VideoResult") -> str:
    found = ", ".join(f"{name} {count}" for name, count in video.found.most_common()) or "nothing"
    return f"{video.source}: {video.count} frames of {video.width}x{video.height}; found in all of them: {found}"
