"""Reports: sentences that state what is true of a scene, in wording that varies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .sample import Lesion
from .scene import Scene

Pick = Callable[..., str]

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
KIND_WORDS = {
    "plaque": ("demyelinating plaque", "ovoid white matter lesion", "focal demyelinating lesion"),
    "tumour": ("mass", "space-occupying lesion", "tumour"),
    "lacune": ("lacune", "lacunar lesion", "small cystic lesion"),
    "infarct": ("wedge-shaped infarct", "territorial infarct", "ischaemic lesion"),
}


def write_report(scene: Scene, lesions: tuple[Lesion, ...], facts: dict[str, str | float]) -> tuple[str, ...]:
    """Write a report, one sentence an entry: technique, plane, findings, ventricles, artefacts, impression."""
    rng = np.random.default_rng([scene.seed, 0x5EA7])

    def pick(*options: str) -> str:
        return options[int(rng.integers(len(options)))]

    sequence = pick(*SEQUENCE_WORDS[scene.protocol.sequence])
    family = pick(*FAMILY_WORDS[scene.protocol.family])
    plane, field = str(facts["plane"]), f"{scene.protocol.field_strength_t:g}"
    sentences = [
        pick(
            f"{sequence} image of the head, {family}, at {field} T.",
            f"MRI of the brain: {sequence} {family} at {field} tesla.",
            f"The series is {sequence} ({family}), acquired at {field} T.",
            f"{family[0].upper() + family[1:]} of the head at {field} T, {sequence}.",
        ),
        pick(
            f"{plane.capitalize()} slices of {scene.prescription.thickness_mm:.1f} mm.",
            f"The plane is {plane}, slice thickness {scene.prescription.thickness_mm:.1f} mm.",
            f"Acquired in {plane} orientation with {facts['slices']:.0f} slices.",
        ),
    ]
    sentences += [_lesion_sentence(lesion, pick) for lesion in lesions]
    if not lesions:
        sentences.append(
            pick(
                "No focal lesion is seen.",
                "There is no focal abnormality of the brain parenchyma.",
                "No lesion in the field of view.",
                "Normal signal of grey and white matter without a lesion.",
            )
        )
    ventricles = facts["ventricles"]
    if ventricles == "enlarged":
        sentences.append(
            pick("The lateral ventricles are enlarged.", "Ventricular enlargement.", "Widened lateral ventricles.")
        )
    elif ventricles == "narrow":
        sentences.append(pick("The ventricles are narrow.", "Slender lateral ventricles.", "Small ventricles."))
    else:
        sentences.append(
            pick("The ventricles are of normal size.", "Normal ventricles.", "Lateral ventricles not enlarged.")
        )
    sentences += _artefacts(scene, pick)
    if len(lesions) > 1:
        sentences.append(
            pick(f"In total {len(lesions)} lesions.", f"Impression: {len(lesions)} lesions.", "Multiple lesions.")
        )
    return tuple(sentences)


def _lesion_sentence(lesion: Lesion, pick: Pick) -> str:
    noun = pick(*KIND_WORDS[lesion.kind])
    size = round(max(lesion.size_mm))
    side = {"midline": "near the midline of the", "left": "in the left", "right": "in the right"}[lesion.side]
    if lesion.region in ("brainstem", "deep grey nuclei"):
        side = {"midline": "in the", "left": "on the left in the", "right": "on the right in the"}[lesion.side]
    place = f"{side} {lesion.region}"
    return pick(
        f"There is {_article(noun)} {noun} of {size} mm {place}.",
        f"{noun.capitalize()} {place}, {size} mm in its largest dimension.",
        f"{_article(str(size)).capitalize()} {size} mm {noun} is seen {place}.",
        f"{place[0].upper() + place[1:]} {_article(noun)} {noun} measuring {size} mm.",
    )


def _article(word: str) -> str:
    """Return "a" or "an" before a word or number (8, 11 and 18 begin with a vowel)."""
    return "an" if word[0] in "aeiou8" or word in ("11", "18") else "a"


def _artefacts(scene: Scene, pick: Pick) -> list[str]:
    look, found = scene.look, []
    if look.ghost > 0.05:
        found.append(
            pick("Ghosting along the phase axis.", "Motion artefact with ghosts.", "Ghost artefacts are present.")
        )
    if look.snr < 20:
        found.append(pick("The image is noisy.", "Low signal-to-noise ratio.", "Image quality is limited by noise."))
    if scene.protocol.family == "epi":
        found.append(
            pick(
                "Signal loss and distortion near the skull base.",
                "Susceptibility artefacts at the paranasal sinuses.",
                "Geometric distortion typical of echo planar imaging.",
            )
        )
    if look.removed == "face":
        found.append(pick("The face has been removed.", "Defaced data set."))
    if look.removed == "scalp":
        found.append(pick("The skull has been stripped.", "Skull-stripped data set."))
    return found
