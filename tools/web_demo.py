#!/usr/bin/env python
"""Draw in the browser: a class or a prompt, the denoising as an animation, and zooming by decoding the field."""

import argparse
import base64
import io
import os

import options

VIEW = 256  # pixels of the longer side of what is shown, at least
MAX_ZOOM = 64


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='published .ckpt, a .pth of tools/train.py, or .safetensors')
    parser.add_argument('--text-encoder', metavar='FOLDER', help='Qwen3 folder, for a model that draws prompts')
    parser.add_argument('--class-names', metavar='FILE', help='names of the classes, one a line, if the file has none')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (127.0.0.1: this machine only)')
    parser.add_argument('--port', type=int, default=7860, help='port (7860)')
    options.add_device(parser)
    return parser.parse_args()


def draw(pipe, what: str, negative: str, size: tuple[int, int], steps: int, order: int, guidance: float, seed: int,
         progress=lambda done, total: None):  # fmt: skip
    """Sample one picture, uint8 (H, W, 3); returns it, its denoising as the bytes of a GIF, and its field."""
    from pixnerd_plugin.functional.noise import draw_noise, picture_generators
    from pixnerd_plugin.images import to_uint8

    settings = dict(num_steps=steps, order=order, guidance_scale=guidance)
    sampler = pipe.sampler.replace(type='AdamsFlowSampler', **settings)
    pipe.check([what], [seed], size)
    frames = [to_uint8(draw_noise(picture_generators([seed]), (pipe.net.in_channels, *size)))[0]]

    def after(step):
        frames.append(to_uint8(step.denoised)[0])
        progress(step.index + 1, step.num_steps)

    image, field = pipe.sample(
        [what], [seed], size, sampler=sampler, negative_prompt=negative, record_field=True, callback=after
    )
    return to_uint8(image)[0], animation(frames), field


def zoom(field, factor: float, center: tuple[float, float], grain: float):
    """Render the window of ``1 / factor`` of the picture around ``center`` (row and column, 0 to 1)."""
    from pixnerd_plugin.images import to_uint8

    size, region = window(field.size, factor, center)
    return to_uint8(field.decode(size, region, grain=grain))[0]


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


def build_app(pipe):
    """The page. Each visitor's field is kept in the page's own state."""
    import gradio as gr

    def sample(what, negative, height, width, steps, order, guidance, seed, progress=gr.Progress()):  # noqa: B008
        def show(done, total):
            progress((done, total), desc='drawing')

        try:
            picture, gif, field = draw(
                pipe, str(what), negative, (int(height), int(width)), int(steps), int(order), guidance, int(seed), show
            )
        except ValueError as error:
            raise gr.Error(str(error)) from None
        return enlarge(picture), as_html(gif), field, (0.5, 0.5), zoom(field, 1, (0.5, 0.5), 0), 1

    def look(field, factor, center, grain):
        return None if field is None else zoom(field, factor, center, grain)

    def point(field, factor, grain, event: gr.SelectData):
        if field is None:
            return (0.5, 0.5), None
        shown = max(1, VIEW // max(field.size))
        center = event.index[1] / (field.size[0] * shown), event.index[0] / (field.size[1] * shown)
        return center, zoom(field, factor, center, grain)

    # Without the button that shares with a service on the network.
    shown = dict(interactive=False, format='png', buttons=['download', 'fullscreen'])
    with gr.Blocks(title='PixNerd', analytics_enabled=False) as app:
        gr.Markdown('# PixNerd\nDraw a picture, then look closer: click where, and choose how much.')
        with gr.Row():
            with gr.Column(min_width=260):
                what, negative = inputs_for(pipe, gr)
                (rows, columns), patch = pipe.size, pipe.net.patch_size
                with gr.Row():
                    height = gr.Number(rows, label='height', precision=0, step=patch, minimum=patch)
                    width = gr.Number(columns, label='width', precision=0, step=patch, minimum=patch)
                steps = gr.Slider(1, 100, pipe.sampler.num_steps, step=1, label='steps')
                order = gr.Slider(1, 4, pipe.sampler.order, step=1, label='order of the solver (1: Euler)')
                guidance = gr.Slider(1, 10, pipe.sampler.guidance_scale, step=0.1, label='guidance')
                seed = gr.Number(0, label='seed', precision=0, minimum=0)
                button = gr.Button('Draw', variant='primary')
            with gr.Column(min_width=260):
                picture = gr.Image(label='as sampled; click to look there', **shown)
                gif = gr.HTML(label='denoising')
            with gr.Column(min_width=260):
                view = gr.Image(label='the field, decoded here', **shown)
                factor = gr.Slider(1, MAX_ZOOM, 1, step=0.5, label='zoom')
                grain = gr.Slider(0, 1, 0, step=0.05, label='grain')
        field, center = gr.State(), gr.State((0.5, 0.5))
        settings = [what, negative, height, width, steps, order, guidance, seed]
        button.click(sample, settings, [picture, gif, field, center, view, factor])
        for slider in (factor, grain):
            # Dragged, or typed beside it; of what is asked for while one view is decoded, the last.
            slider.input(look, [field, factor, center, grain], view, trigger_mode='always_last')
        picture.select(point, [field, factor, grain], [center, view])
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


def main(args: argparse.Namespace) -> None:
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    import gradio as gr

    from pixnerd_plugin import load_pipeline

    pipe = load_pipeline(args.checkpoint, args.text_encoder, args.device, class_names=args.class_names)
    if pipe.conditioner is None:
        raise ValueError(f'{args.checkpoint} draws prompts; give --text-encoder FOLDER, its Qwen3 model')
    # The fonts of the default theme are fetched from the network.
    theme = gr.themes.Base(font=['system-ui', 'sans-serif'], font_mono=['monospace'])
    build_app(pipe).launch(
        server_name=args.host, server_port=args.port, share=False, theme=theme, footer_links=[], quiet=False
    )


if __name__ == '__main__':
    arguments = parse_args()
    # Only now, because it imports torch: --help answers at once.
    from pixnerd_plugin.cli import one_line_errors

    with one_line_errors():
        main(arguments)
