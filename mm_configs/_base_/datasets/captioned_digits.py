# Coloured handwritten digits with captions, made as they are asked for; their text embeddings by `make demo`.
text_embeddings = 'work_dirs/t2i_digits/text'
image_size = 32

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    dataset=dict(
        type='CaptionedDigits',
        pipeline=[
            dict(type='LoadTextEmbedding', folder=text_embeddings),
            dict(type='PackInputs', keys=('text_embeds',)),
        ],
    ),
    sampler=dict(type='ResumableSampler', shuffle=True, seed=0),
    batch_sampler=dict(type='BucketBatchSampler'),  # square, wide and tall pictures
    collate_fn=dict(type='default_collate'),
)
