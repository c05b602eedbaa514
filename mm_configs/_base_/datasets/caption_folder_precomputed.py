# caption_folder.py with text embeddings from tools/precompute_text.py instead of a text encoder.
_base_ = './caption_folder.py'
text_embeddings = '{{$PIXNERD_TEXT:data/text}}'
image_size = 256
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadRGB'),
            dict(type='ResizeCenterCrop', size=image_size),
            dict(type='RandomCaption'),
            dict(type='LoadTextEmbedding', folder=text_embeddings),
            dict(type='PackInputs', keys=('text_embeds',)),
        ],
    ),
)
