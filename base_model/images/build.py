"""Build a base of images, once, at the publisher. (P-1.15)"""

from __future__ import annotations

from functools import partial

from base_model.images.classifier import ImageClassifier
from base_model.images.export import exported_images
from base_model.images.source import load_images
from base_model.media_build import MediaBuild, build_media

KIND = MediaBuild(
    load=load_images,
    # eager attention exports to plain matrix products
    model=lambda source, labels: ImageClassifier(source.config, labels=labels, attention="eager"),
    export=exported_images,
)
build_images = partial(build_media, KIND)
