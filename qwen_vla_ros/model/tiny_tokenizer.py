# SPDX-License-Identifier: Apache-2.0
"""A word tokenizer of less than 1024 entries for the tiny preset.

Whole words where they are known, bytes where they are not, so that any text encodes. The fixed phrases of
the prompt template are one token each: a prompt with one small image stays near 40 tokens. Case is folded.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD = "<|endoftext|>"
IMAGE = "<|image_pad|>"
VIDEO = "<|video_pad|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"

VIEWS = """
ego ego_left ego_right cam_left_wrist cam_right_wrist cam_wrist cam_head cam_high cam_low cam_front cam_back
cam_left cam_right cam_top cam_side cam_chest cam_base cam_third_person
"""

# Pieces of the prompt template; spaces before them belong to them.
PHRASES = (
    "The robot is",
    "with single arm",
    "with dual arms",
    "with mobile base",
    ", waist",
    ", and mobile base",
    ". The control frequency is",
    "Hz. Please predict the next",
    "control actions to execute the following task:",
    "waypoints (dx, dy, dtheta) in the ground plane, in metres and radians relative to the current pose, "
    "to execute the following task:",
)

WORDS = """
a above absolute across action actions adjust again against agibot ahead align all aloha along alongside
already also always an and another any apple approach are arm arms around arrange arx5 as aside assemble
at avoid away back backward backwards bag ball balls banana bar base basket bathroom battery be bed
bedroom before behind below bend beneath beside between beyond big bimanual bin black block blocks blue
body bolt book books both bottle bottles bottom bowl bowls box boxes bread bright bring brown brush
bucket burner button by cabinet cable cake can cans car card careful carefully carrot carry catch ceiling
center centre chair cheese chicken chunk clean clear click close closer closest cloth clothes coffee
color colored colour coloured come computer container continue control corn corner corridor counter cover
cross cube cubes cup cupboard cups current cut cyan cylinder dark degree degrees delta desk dexterous
dirty disk distance do door doors down downward draw drawer drawers drive drop dtheta dual dump dx dy
edge eef egg eight elbow empty end enter every execute exit explore face facing far farther farthest fast
feet fill find finger fingers finish firmly first five flat flip floor flower fold follow following food
foot for fork forward forwards four fourier franka frequency fridge from front fruit full furthest g1
galaxea garden gather gear gentle gently get give glass glasses glove go gold google gr grab grasp gray
green grey grip gripper grippers ground guide hall hallway hammer hand handle hands hang hard has have he
head heavy high higher highest hold hole home hook horizontal hover how human humanoid hz if image in
insert inside inspect instruction into is it item items its itself jar joint joints jug juice just keep
kettle key keyboard keys kitchen knife knock lamp laptop large last leave left leftmost leg legs lemon
lever lid lids lift light little lock long look low lower lowest make man marker mat me meter meters
microwave middle milk mix mobile move mug mugs mushroom napkin narrow navigate near nearer nearest neck
neutral new next nine no not now nut object objects of off office old on once one onion only onto open
operate opposite or orange organize other out outside oven over pack pad pal pale pan panda paper park
pass past pause peg pegs pen pencil people pepper person phone pick pillar pillars pinch pink pipe pivot
place plane plant plastic plate plates please plug point pole pose position pot potato pour predict press
pull purple push put quick r1 radians raise reach reaching ready rear red refrigerator release remove
reset rest return rice right rightmost ring robot roll room rooms rotate round rub rubber salt same scoop
screw screwdriver search second seconds send separate serve set seven shake shape shelf shelves shift
shirt shoe shoes short shoulder show shut side single sink sit six slide slot slow slowly small so so100
so101 some sort spatula sphere sponge spoon spread square squeeze stack stand start state stay steel
stick still stop store stove straight sugar sweep swing switch table take tall tap tape target task tea
ten than that the their them then there these they thick thin thing third this those three through throw
tiago tilt tiny to together toggle tomato too tool top touch toward towards towel toy toys train transfer
travel tray truck turn twist two under unitree unlock until up upon upper upward ur10e ur5e us use using
vegetable vertical via view violet viperx waist wait walk wall was wash watch water wave waypoint
waypoints we what wheel when where which while white who wide widowx will window wipe wire with without
woman wooden would wrist yellow you your
"""


def build_tiny_tokenizer(views: Sequence[str] = tuple(VIEWS.split())) -> PreTrainedTokenizerFast:
    """The tiny preset's tokenizer, with a start and an end tag for each view."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    numbers = [str(n) for n in range(101)]
    vocabulary: dict[str, int] = {}
    for entry in (*alphabet, *(f"Ġ{word}" for word in (*numbers, *WORDS.split()))):
        vocabulary.setdefault(entry, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.Lowercase()
    # Unlike the ByteLevel default, keeps `so101` and `g1` whole.
    word = Regex(r" ?[\p{L}\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(word, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tags = [f"<|{view}_{end}|>" for view in views for end in ("start", "end")]
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t in (PAD, VISION_START, VISION_END, IMAGE, VIDEO, *tags)
        ]
    )
    tokenizer.add_tokens([AddedToken(phrase, lstrip=True, normalized=False) for phrase in PHRASES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=PAD, padding_side="right"
    )
