"""Reports in two sets of wordings that share no sentence: one to train with, one held out for tests.

A model that has learnt sentences by heart and not what they say does well on the first set only. The words for a
sequence or a kind of lesion are the same in both: what no text has named cannot be known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from .findings import GHOSTED, NOISY, Findings, LesionFinding

Wordings = Literal["train", "held_out"]
Templates = Mapping[Wordings, tuple[str, ...]]

SEQUENCE_WORDS = {
    "T1w": ("T1-weighted", "T1w", "T1 weighted"),
    "T2w": ("T2-weighted", "T2w", "T2 weighted"),
    "PDw": ("proton density weighted", "PD-weighted", "PDw"),
    "FLAIR": ("FLAIR", "fluid-attenuated inversion recovery", "T2 FLAIR"),
    "T2*w": ("T2*-weighted", "T2*w", "T2 star weighted"),
}
FAMILY_WORDS = {
    "mprage": ("MPRAGE", "magnetisation-prepared gradient echo"),
    "flash2d": ("2D FLASH", "spoiled gradient echo"),
    "flash3d": ("3D FLASH", "3D spoiled gradient echo"),
    "se": ("spin echo", "conventional spin echo"),
    "tse": ("turbo spin echo", "fast spin echo"),
    "tse3d": ("3D turbo spin echo", "3D fast spin echo"),
    "flair": ("2D inversion recovery", "inversion recovery turbo spin echo"),
    "flair3d": ("3D inversion recovery", "3D turbo spin echo with inversion"),
    "epi": ("echo planar imaging", "gradient-echo EPI"),
    "gre2d": ("gradient echo", "2D gradient echo"),
    "gre3d": ("3D gradient echo", "susceptibility-sensitive 3D gradient echo"),
}
LESION_WORDS = {
    "plaque": ("demyelinating plaque", "ovoid white matter lesion", "focal demyelinating lesion", "plaque"),
    "tumour": ("mass", "space-occupying lesion", "tumour", "tumorous mass"),
    "lacune": ("lacune", "lacunar lesion", "small cystic lesion", "lacunar infarct"),
    "infarct": ("wedge-shaped infarct", "territorial infarct", "ischaemic lesion", "infarct"),
}
ADJECTIVES = {
    "frontal lobe": "frontal",
    "parietal lobe": "parietal",
    "temporal lobe": "temporal",
    "occipital lobe": "occipital",
    "cerebellum": "cerebellar",
    "brainstem": "brainstem",
    "deep grey nuclei": "deep grey matter",
}
UNPAIRED = ("brainstem", "deep grey nuclei")  # "on the left in the brainstem", not "in the left brainstem"

TECHNIQUE: Templates = {
    "train": (
        "{sequence} image of the head, {family}, at {field} T.",
        "MRI of the brain: {sequence} {family} at {field} tesla.",
        "The series is {sequence} ({family}), acquired at {field} T.",
        "{family} of the head at {field} T, {sequence}.",
        "Technique: {sequence} {family}, {field} T.",
        "{sequence} contrast, {family}, field strength {field} tesla.",
        "Cranial MRI, {sequence}, {family}, on a {field} T scanner.",
        "{sequence} sequence of the brain.",
    ),
    "held_out": (
        "The head was scanned with a {sequence} {family} at {field} tesla.",
        "{field} T MRI of the head: {family}, {sequence}.",
        "Brain, {sequence} series, {family} ({field} T).",
        "Examination of the brain with {sequence} contrast by {family}, {field} T.",
    ),
}
PLANE: Templates = {
    "train": (
        "{plane} slices every {step:.1f} mm.",
        "The plane is {plane}, slice distance {step:.1f} mm.",
        "Acquired in {plane} orientation with {slices} slices.",
        "{slices} {plane} slices.",
        "Slice orientation: {plane}, {step:.1f} mm.",
        "{plane} plane.",
    ),
    "held_out": (
        "{plane} images, {slices} of them, {step:.1f} mm apart.",
        "Images are in the {plane} plane with a distance of {step:.1f} mm.",
        "{slices} slices in {plane} orientation.",
    ),
}
LESION: Templates = {
    "train": (
        "There is {a_noun} of {size} mm {place}.",
        "{noun} {place}, {size} mm in its largest dimension.",
        "{a_size} mm {noun} is seen {place}.",
        "{place} {a_noun} measuring {size} mm.",
        "{adjective} {noun}, {size} mm.",
        "{place} there is {a_noun}.",
        "Findings: {noun} {place} ({size} mm).",
        "{a_noun} with a diameter of {size} mm lies {place}.",
    ),
    "held_out": (
        "{adjective} {noun} measures {size} mm.",
        "We see {a_noun} {place}, about {size} mm.",
        "{noun} of {size} mm {place}.",
        "The {adjective} lesion is {a_noun} of {size} mm.",
    ),
}
NO_LESION: Templates = {
    "train": (
        "No focal lesion is seen.",
        "There is no focal abnormality of the brain parenchyma.",
        "No lesion in the field of view.",
        "Normal signal of grey and white matter without a lesion.",
        "The brain parenchyma is unremarkable.",
        "No evidence of a mass, an infarct or a plaque.",
        "Findings: no lesion.",
    ),
    "held_out": (
        "The parenchyma shows no focal lesion.",
        "Grey and white matter are normal, no lesion is present.",
        "Without evidence of a focal lesion.",
        "No abnormality of the brain in the field of view.",
    ),
}
VENTRICLES: Mapping[str, Templates] = {
    "enlarged": {
        "train": (
            "The lateral ventricles are enlarged.",
            "Ventricular enlargement.",
            "Widened lateral ventricles.",
            "The ventricles are wide.",
            "Enlarged ventricles.",
        ),
        "held_out": (
            "Enlargement of the lateral ventricles.",
            "The lateral ventricles are widened.",
            "Wide ventricles are noted.",
        ),
    },
    "narrow": {
        "train": (
            "The ventricles are narrow.",
            "Slender lateral ventricles.",
            "Small ventricles.",
            "The lateral ventricles are slender.",
        ),
        "held_out": (
            "Narrow lateral ventricles.",
            "The lateral ventricles are small.",
            "Slender ventricles are noted.",
        ),
    },
    "normal": {
        "train": (
            "The ventricles are of normal size.",
            "Normal ventricles.",
            "Lateral ventricles not enlarged.",
            "Normal width of the lateral ventricles.",
            "Unremarkable ventricles.",
        ),
        "held_out": (
            "The lateral ventricles are of normal width.",
            "Ventricles are unremarkable.",
            "The size of the ventricles is normal.",
        ),
    },
}
ARTEFACTS: Mapping[str, Templates] = {
    "ghost": {
        "train": ("Ghosting along the phase axis.", "Motion artefact with ghosts.", "Ghost artefacts are present."),
        "held_out": ("Ghosts along the phase axis are present.", "There is ghosting."),
    },
    "noise": {
        "train": ("The image is noisy.", "Low signal-to-noise ratio.", "Image quality is limited by noise."),
        "held_out": ("Noise limits the image quality.", "The signal-to-noise ratio is low."),
    },
    "epi": {
        "train": (
            "Signal loss and distortion near the skull base.",
            "Susceptibility artefacts at the paranasal sinuses.",
            "Geometric distortion typical of echo planar imaging.",
        ),
        "held_out": (
            "Distortion and signal loss at the skull base.",
            "Susceptibility artefacts near the paranasal sinuses are present.",
        ),
    },
    "face": {
        "train": ("The face has been removed.", "Defaced data set."),
        "held_out": ("The face is removed from the image.", "The data set is defaced."),
    },
    "scalp": {
        "train": ("The skull has been stripped.", "Skull-stripped data set."),
        "held_out": ("The skull is removed from the image.", "The data set is skull-stripped."),
    },
}
TOTAL: Templates = {
    "train": ("In total {count} lesions.", "Impression: {count} lesions.", "Multiple lesions."),
    "held_out": ("There are {count} lesions in total.", "The lesions are multiple."),
}
NOT_A_HEAD: Mapping[str, Templates] = {
    "phantom": {
        "train": ("Image of a phantom.", "A phantom, not a patient.", "Quality assurance scan of a phantom."),
        "held_out": ("The image shows a phantom.", "This is a phantom scan."),
    },
    "noise": {
        "train": ("The image holds noise only.", "Noise without anatomy.", "No object in the field of view."),
        "held_out": ("Only noise is seen.", "The field of view holds nothing but noise."),
    },
    "other_anatomy": {
        "train": ("The image shows a body part other than the head.", "Not a head: another body part."),
        "held_out": ("A body part that is not the head is shown.",),
    },
    "scrambled": {
        "train": ("The image does not show a head.", "The anatomy is not plausible.", "A corrupted image."),
        "held_out": ("This image is corrupted and shows no plausible head.",),
    },
}


def write_report(findings: Findings, seed: int, wordings: Wordings) -> tuple[str, ...]:
    """Put findings into words, one sentence an entry: technique, plane, lesions, ventricles, artefacts, total.

    Parameters
    ----------
    findings : Findings
    seed : int, 0 or more
        The same seed gives the same words.
    wordings : "train" or "held_out"
        The two sets share no sentence.
    """
    rng = np.random.default_rng([seed, 0x5EA7, 0 if wordings == "train" else 1])

    def say(templates: Templates, **values: str | float) -> str:
        options = templates[wordings]
        text = options[int(rng.integers(len(options)))].format(**values)
        return text[0].upper() + text[1:]

    def word(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    if findings.kind != "head":
        return (say(NOT_A_HEAD[findings.kind]),)
    sentences = [
        say(
            TECHNIQUE,
            sequence=word(SEQUENCE_WORDS[findings.sequence]),
            family=word(FAMILY_WORDS[findings.family]),
            field=f"{findings.field_t:g}",
        ),
        say(PLANE, plane=findings.plane, step=findings.slice_step_mm, slices=findings.slices),
    ]
    sentences += [say(LESION, **_lesion_words(x, word(LESION_WORDS[x.kind]))) for x in findings.lesions]
    if not findings.lesions:
        sentences.append(say(NO_LESION))
    sentences.append(say(VENTRICLES[findings.ventricles]))
    seen = {
        "ghost": findings.ghost > GHOSTED,
        "noise": findings.snr < NOISY,
        "epi": findings.family == "epi",
        "face": findings.removed == "face",
        "scalp": findings.removed == "scalp",
    }
    sentences += [say(ARTEFACTS[name]) for name, present in seen.items() if present]
    if len(findings.lesions) > 1:
        sentences.append(say(TOTAL, count=len(findings.lesions)))
    return tuple(sentences)


def _lesion_words(lesion: LesionFinding, noun: str) -> dict[str, str | float]:
    side, region = lesion.side, lesion.region
    if region in UNPAIRED:
        place = {"midline": "in the", "left": "on the left in the", "right": "on the right in the"}[side]
    else:
        place = {"midline": "near the midline of the", "left": "in the left", "right": "in the right"}[side]
    size = str(lesion.size_mm)
    return {
        "noun": noun,
        "a_noun": f"{_article(noun)} {noun}",
        "size": size,
        "a_size": f"{_article(size)} {size}",
        "place": f"{place} {region}",
        "adjective": f"{side} {ADJECTIVES[region]}",
    }


def _article(word: str) -> str:
    """Return "a" or "an" before a word or number (8, 11 and 18 begin with a vowel)."""
    return "an" if word[0] in "aeiou8" or word in ("11", "18") else "a"
