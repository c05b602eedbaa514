# PixNerd-XXL/16 at 256 from stored text embeddings (PIXNERD_TEXT, written by tools/precompute_text.py), which saves the
# memory and time of the text encoder. Its weights are read only if a sample grid has prompts that are not stored.
_base_ = [
    '_base_/models/pixnerd_t2i.py',
    '_base_/datasets/caption_folder_precomputed.py',
    '_base_/schedules/t2i_200k.py',
    '_base_/runtime/default.py',
]
model = dict(conditioner=dict(precomputed='{{$PIXNERD_TEXT:data/text}}'))
custom_hooks = [dict(type='SampleGridHook', interval=10_000, conditions=dict(text=[''] * 16), size=256)]
