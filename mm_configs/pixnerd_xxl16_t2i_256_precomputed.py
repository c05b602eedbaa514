# PixNerd-XXL/16 at 256 from embeddings computed ahead (PIXNERD_TEXT, by tools/precompute_text.py): saves the memory
# of the text encoder and its time in every step. A sample grid of prompts that are not among them reads its weights.
_base_ = [
    '_base_/models/pixnerd_t2i.py',
    '_base_/datasets/caption_folder_precomputed.py',
    '_base_/schedules/t2i_200k.py',
    '_base_/runtime/default.py',
]
model = dict(conditioner=dict(precomputed='{{$PIXNERD_TEXT:data/text}}'))
custom_hooks = [dict(type='SampleGridHook', interval=10_000, conditions=dict(text=[''] * 16), size=256)]
