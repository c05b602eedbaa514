#!/usr/bin/env python
"""Draw in the browser: a class or a prompt, the denoising as an animation, and zooming by decoding the field."""

import argparse
import base64
import io
import os
import threading
from pathlib import Path

import options

OWN = ('work_dirs/t2i_digits', 'work_dirs/digits')

VIEW = 256  # pixels of the longer side of what is shown, at least
MAX_ZOOM = 64


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='published .ckpt, a .pth of tools/train.py, or .safetensors; by default that of `make demo`',
    )
    parser.add_argument(
        '--text-encoder',
        metavar='FOLDER',
        help='Qwen3 folder, for a model that draws prompts; by default text_encoder beside it',
    )
    parser.add_argument('--class-names', metavar='FILE', help='names of the classes, one a line, if the file has none')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (127.0.0.1: this machine only)')
    parser.add_argument('--port', type=int, default=7860, help='port (7860)')
    options.add_device(parser)
    options.add_imports(parser)
    limits = parser.add_argument_group('limits for visitors')
    at_least_1 = options.numbers(1)
    limits.add_argument('--max-side', type=at_least_1, default=1024, help='longest side of a picture in pixels (1024)')
    limits.add_argument('--max-steps', type=at_least_1, default=100, help='most steps of the solver (100)')
    limits.add_argument('--queue', type=at_least_1, default=16, help='visitors who may wait for their picture (16)')
    limits.add_argument('--keep', type=at_least_1, default=30, help='minutes that pictures and fields are kept (30)')
    return parser.parse_args()


def check_request(pipe, max_side: int, max_steps: int, size: tuple, steps, order, guidance, seed) -> None:
    """Refuse what a visitor may not ask for; the browser's own limits bind no one.

    Raises:
        ValueError: naming the setting and its range.
    """
    longest = max(max_side, *pipe.size)
    ranges = dict(
        height=(size[0], 1, longest),
        width=(size[1], 1, longest),
        steps=(steps, 1, max_steps),
        order=(order, 1, 4),
        guidance=(guidance, 1, 100),
        seed=(seed, 0, 2**53),
    )
    for name, (value, low, high) in ranges.items():
        # Also false of NaN, and of what is no number.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f'{name} {value!r} must be a number from {low} to {high}')
        if name != 'guidance' and value != int(value):
            raise ValueError(f'{name} {value!r} must be a whole number')


class Cancelled(Exception):
    """The visitor does not want the picture any more."""


class Cancellation:
    """Which visitors have asked their drawing to stop; safe from any thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._stopped: dict[str, bool] = {}

    def start(self, visitor: str) -> None:
        with self._lock:
            self._stopped[visitor] = False

    def stop(self, visitor: str) -> None:
        """Stop the drawing of a visitor, if there is one."""
        with self._lock:
            if visitor in self._stopped:
                self._stopped[visitor] = True

    def check(self, visitor: str) -> None:
        """Raise :class:`Cancelled` if the visitor's drawing is to stop."""
        if self._stopped.get(visitor):
            raise Cancelled

    def end(self, visitor: str) -> None:
        with self._lock:
            self._stopped.pop(visitor, None)


def draw(pipe, what: str, negative: str, size: tuple[int, int], steps: int, order: int, guidance: float, seed: int,
         progress=lambda done, total: None):  # fmt: skip
    """Sample one picture, uint8 (H, W, 3); returns it, its denoising as the bytes of a GIF, and its field."""
    from pixnerd_plugin.functional.noise import draw_noise, image_generators
    from pixnerd_plugin.images import to_uint8

    if is_guided(pipe):
        sampler = pipe.sampler.replace('AdamsFlowSampler', num_steps=steps, order=order, guidance_scale=guidance)
    else:
        sampler = pipe.sampler.replace(num_steps=steps)
    pipe.check([what], [seed], size)
    frames = [to_uint8(draw_noise(image_generators([seed]), (pipe.net.in_channels, *size)))[0]]

    def after(step):
        frames.append(to_uint8(step.denoised)[0])
        progress(step.index + 1, step.num_steps)

    image, field = pipe.sample(
        [what], [seed], size, sampler=sampler, negative_prompt=negative, record_field=True, callback=after
    )
    return to_uint8(image)[0], animation(frames), field


def is_guided(pipe) -> bool:
    """Whether the file's solver takes a guidance scale; that of mean velocities does not."""
    return 'guidance_scale' in pipe.sampler.stored


def zoom(field, factor: float, center: tuple[float, float], grain: float, blend: float):
    """Render the window of ``1 / factor`` of the picture around ``center`` (row and column, 0 to 1)."""
    from pixnerd_plugin.images import to_uint8

    if not 1 <= factor <= MAX_ZOOM or not 0 <= grain <= 1:
        raise ValueError(f'zoom {factor!r} must be from 1 to {MAX_ZOOM}, and grain {grain!r} from 0 to 1')
    size, region = window(field.size, factor, center)
    return to_uint8(field.decode(size, region, grain=grain, blend=blend))[0]


def window(base: tuple[int, int], factor: float, center: tuple[float, float]):
    """The size of the whole picture and the region of it that shows that window, as large as sampled or ``VIEW``."""
    scale = factor * max(1, VIEW / max(base))
    size = tuple(max(1, round(side * scale)) for side in base)
    shown = tuple(max(1, round(side / factor)) for side in size)
    start = [
        min(max(0, round(c * side - part / 2)), side - part) for c, side, part in zip(center, size, shown, strict=True)
    ]
    return size, (start[0], start[1], start[0] + shown[0], start[1] + shown[1])


def enlarge(pixels):
    """Repeat pixels until the longer side has about ``VIEW``, so that the browser shows them as they are."""
    factor = max(1, VIEW // max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def animation(frames: list) -> bytes:
    from PIL import Image

    first, *rest = (Image.fromarray(enlarge(frame)) for frame in frames)
    file = io.BytesIO()
    durations = [80] * len(rest) + [1500]
    first.save(file, 'GIF', save_all=True, append_images=rest, duration=durations, loop=0)
    return file.getvalue()


def as_html(gif: bytes) -> str:
    return f'<img alt="denoising" src="data:image/gif;base64,{base64.b64encode(gif).decode()}">'


def build_app(pipe, max_side: int = 1024, max_steps: int = 100, keep: int = 30):
    """The page. Each visitor's field is kept in the page's own state, ``keep`` minutes long, as are picture files."""
    import gradio as gr

    from pixnerd_plugin.functional.blending import BLEND, MAX_BLEND

    cancellation, bar = Cancellation(), gr.Progress()

    # gradio fills in request and progress, and event below, by type.
    def sample(
        what, negative, height, width, steps, order, guidance, seed, grain, blend, request: gr.Request, progress=bar
    ):
        visitor = request.session_hash

        def show(done, total):
            cancellation.check(visitor)
            progress((done, total), desc='drawing')

        cancellation.start(visitor)
        try:
            check_request(pipe, max_side, max_steps, (height, width), steps, order, guidance, seed)
            picture, gif, field = draw(
                pipe, str(what), negative, (int(height), int(width)), int(steps), int(order), guidance, int(seed), show
            )
        except ValueError as error:
            raise gr.Error(str(error)) from None
        except Cancelled:
            raise gr.Error('cancelled', print_exception=False) from None
        finally:
            cancellation.end(visitor)
        return enlarge(picture), as_html(gif), field, (0.5, 0.5), zoom(field, 1, (0.5, 0.5), grain, blend), 1

    def cancel(request: gr.Request):
        cancellation.stop(request.session_hash)

    def look(field, factor, center, grain, blend):
        try:
            return None if field is None else zoom(field, factor, center, grain, blend)
        except ValueError as error:
            raise gr.Error(str(error)) from None

    def point(field, factor, grain, blend, event: gr.SelectData):
        if field is None:
            return (0.5, 0.5), None
        shown = max(1, VIEW // max(field.size))
        center = event.index[1] / (field.size[0] * shown), event.index[0] / (field.size[1] * shown)
        return center, look(field, factor, center, grain, blend)

    # Without the button that shares with a service on the network.
    shown = dict(interactive=False, format='png', buttons=['download', 'fullscreen'])
    with gr.Blocks(title='PixNerd', analytics_enabled=False, delete_cache=(60, keep * 60)) as app:
        gr.Markdown('# PixNerd\nDraw a picture, then look closer: click where, and choose how much.')
        with gr.Row():
            with gr.Column(min_width=260):
                what, negative = inputs_for(pipe, gr)
                (rows, columns), patch = pipe.size, pipe.net.patch_size
                with gr.Row():
                    side = dict(precision=0, step=patch, minimum=patch, maximum=max(max_side, rows, columns))
                    height = gr.Number(rows, label='height', **side)
                    width = gr.Number(columns, label='width', **side)
                steps = gr.Slider(1, max_steps, min(max_steps, pipe.sampler.num_steps), step=1, label='steps')
                own = dict(visible=is_guided(pipe))
                order = gr.Slider(1, 4, pipe.sampler.order, step=1, label='order of the solver (1: Euler)', **own)
                guidance = gr.Slider(1, 10, pipe.sampler.guidance_scale, step=0.1, label='guidance', **own)
                seed = gr.Number(0, label='seed', precision=0, minimum=0, maximum=2**53)
                with gr.Row():
                    button = gr.Button('Draw', variant='primary')
                    stop = gr.Button('Cancel')
            with gr.Column(min_width=260):
                picture = gr.Image(label='as sampled; click to look there', **shown)
                gif = gr.HTML(label='denoising')
            with gr.Column(min_width=260):
                view = gr.Image(label='the field, decoded here', **shown)
                factor = gr.Slider(1, MAX_ZOOM, 1, step=0.5, label='zoom')
                grain = gr.Slider(0, 1, 0, step=0.05, label='grain')
                blend = gr.Slider(0, MAX_BLEND, BLEND, step=0.05, label='blend of patches (0: hard borders)')
        field, center = gr.State(time_to_live=keep * 60), gr.State((0.5, 0.5))
        settings = [what, negative, height, width, steps, order, guidance, seed, grain, blend]
        drawing = button.click(sample, settings, [picture, gif, field, center, view, factor])
        # Who waits leaves the queue; who is being drawn for stops after the step.
        stop.click(cancel, cancels=[drawing], queue=False)
        for slider in (factor, grain, blend):
            # Dragged, or typed beside it; of what is asked for while one view is decoded, the last.
            slider.input(look, [field, factor, center, grain, blend], view, trigger_mode='always_last')
        picture.select(point, [field, factor, grain, blend], [center, view])
    return app


def inputs_for(pipe, gr):
    """What is asked for: a prompt and what to avoid, or a class."""
    if pipe.is_text:
        return gr.Textbox(label='prompt', lines=2), gr.Textbox(label='negative prompt')
    names = pipe.class_names or range(pipe.net.num_classes)
    choices = [
        (f'{index}: {name}' if str(index) != str(name) else name, str(index)) for index, name in enumerate(names)
    ]
    return gr.Dropdown([(str(name), index) for name, index in choices], value='0', label='class'), gr.State('')


def find_own() -> Path:
    """The last checkpoint of `make demo` or, if there is none, of `make demo-classes`."""
    from pixnerd_plugin.engine.resume import find_checkpoint

    for folder in OWN:
        if path := find_checkpoint(Path(folder)):
            return path
    raise FileNotFoundError(f'no checkpoint is named, and none is in {" or ".join(OWN)}; train one first: make demo')


def main(args: argparse.Namespace) -> None:
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    import gradio as gr

    from pixnerd_plugin import load_pipeline

    args.checkpoint = args.checkpoint or find_own()
    options.import_parts(args, args.checkpoint)
    pipe = load_pipeline(args.checkpoint, args.text_encoder, args.device, class_names=args.class_names)
    if pipe.conditioner is None:
        raise ValueError(f'{args.checkpoint} draws prompts; give --text-encoder FOLDER, its Qwen3 model')
    # The fonts of the default theme are fetched from the network.
    theme = gr.themes.Base(font=['system-ui', 'sans-serif'], font_mono=['monospace'])
    app = build_app(pipe, args.max_side, args.max_steps, args.keep)
    # One picture at a time: two would only slow each other.
    app.queue(max_size=args.queue, default_concurrency_limit=1).launch(
        server_name=args.host, server_port=args.port, share=False, theme=theme, footer_links=[], quiet=False
    )


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)
