"""What newcomers type: 60 everyday prompts and 36 composed ones, chosen before they were trained for.

How they are judged, of pictures in one step of `turbo` with seeds 0, 1 and 2:

- `EVERYDAY`, by the evaluator: the nearest real picture in the feature space has one of the labels.
- `EVERYDAY`, by eye and blind: seed 0 alone is shown, without its prompt, beside the four prompts of
  `blind_choices`; right is who names the one that it was drawn from. All answers are kept.
- `COLOURED`, by name and colour: the nearest of all real pictures, each also tinted in the colour, has one of
  the labels; and the colour of `COLOURS` that is nearest to the thing's own is the one asked for.
- `PAIRS` and `COUNTS` by eye alone: both things are there and the first is to the left; the number is right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

CHOICES = 4  # prompts beside a picture that is told blind


@dataclass(frozen=True)
class EverydayPrompt:
    """A prompt, and the labels of real pictures that show what it asks for."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class ColouredPrompt:
    """A colour with a thing that no emoji has in that colour."""

    colour: str  # a name in `sprite_pictures.COLOURS`
    thing: str
    labels: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.thing}"


_CATS = ("cat", "cat face", "black cat", "grinning cat", "grinning cat with smiling eyes")
_DOGS = ("dog", "dog face", "guide dog", "service dog", "poodle")
_CARS = ("automobile", "oncoming automobile", "sport utility vehicle", "racing car")
_HOUSES = ("house", "house with garden")
_TREES = ("deciduous tree", "evergreen tree")
_BOOKS = ("closed book", "blue book", "green book", "orange book", "open book", "notebook")
_SMILES = (
    "grinning face", "grinning face with big eyes", "grinning face with smiling eyes",
    "beaming face with smiling eyes", "slightly smiling face", "smiling face",
    "smiling face with smiling eyes",
)  # fmt: skip
_HEARTS = (
    "red heart", "heart suit", "pink heart", "growing heart", "beating heart", "sparkling heart",
    "orange heart", "yellow heart", "green heart", "blue heart", "light blue heart", "purple heart",
    "brown heart", "black heart", "grey heart", "white heart",
)  # fmt: skip
_FLOWERS = (
    "blossom", "tulip", "hibiscus", "cherry blossom", "rose", "sunflower", "white flower", "hyacinth",
    "lotus",
)  # fmt: skip
_MOONS = (
    "crescent moon", "full moon", "waxing crescent moon", "waning crescent moon", "waxing gibbous moon",
    "waning gibbous moon", "first quarter moon", "last quarter moon", "new moon", "full moon face",
    "new moon face", "first quarter moon face", "last quarter moon face",
)  # fmt: skip
_HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_CLOCKS = (
    "alarm clock", "mantelpiece clock", *(f"{h} o’clock" for h in _HOURS), *(f"{h}-thirty" for h in _HOURS),
)  # fmt: skip
_BALLS = (
    "soccer ball", "basketball", "volleyball", "baseball", "tennis", "softball", "american football",
    "rugby football",
)  # fmt: skip

EVERYDAY = (
    EverydayPrompt("a cat", _CATS),
    EverydayPrompt("a dog", _DOGS),
    EverydayPrompt("a red car", _CARS),
    EverydayPrompt("a rocket", ("rocket",)),
    EverydayPrompt("a house", _HOUSES),
    EverydayPrompt("a tree", _TREES),
    EverydayPrompt("a plane", ("airplane", "small airplane", "airplane departure", "airplane arrival")),
    EverydayPrompt("a person", ("person", "man", "woman", "person standing", "child")),
    EverydayPrompt("a smiley", _SMILES),
    EverydayPrompt(
        "a sad face", ("crying face", "frowning face", "slightly frowning face", "disappointed face")
    ),
    EverydayPrompt("a flower", _FLOWERS),
    EverydayPrompt("the sun", ("sun", "sun with face")),
    EverydayPrompt("the moon", _MOONS),
    EverydayPrompt("a star", ("star", "glowing star")),
    EverydayPrompt("a heart", _HEARTS),
    EverydayPrompt("a boat", ("sailboat", "speedboat", "motor boat", "canoe", "ship")),
    EverydayPrompt("a bike", ("bicycle",)),
    EverydayPrompt("a bus", ("bus", "oncoming bus", "trolleybus")),
    EverydayPrompt("a train", ("train", "high-speed train", "bullet train", "locomotive", "railway car")),
    EverydayPrompt("a truck", ("delivery truck", "articulated lorry", "pickup truck")),
    EverydayPrompt("a horse", ("horse", "horse face")),
    EverydayPrompt("a cow", ("cow", "cow face")),
    EverydayPrompt("a pig", ("pig", "pig face")),
    EverydayPrompt("a bird", ("bird", "black bird", "dove")),
    EverydayPrompt("a fish", ("fish", "tropical fish", "blowfish")),
    EverydayPrompt("a frog", ("frog",)),
    EverydayPrompt("a bear", ("bear", "polar bear")),
    EverydayPrompt("a rabbit", ("rabbit", "rabbit face")),
    EverydayPrompt("a mouse", ("mouse", "mouse face")),
    EverydayPrompt("a lion", ("lion",)),
    EverydayPrompt("an elephant", ("elephant",)),
    EverydayPrompt("a monkey", ("monkey", "monkey face")),
    EverydayPrompt("a fox", ("fox",)),
    EverydayPrompt("an apple", ("red apple", "green apple")),
    EverydayPrompt("a banana", ("banana",)),
    EverydayPrompt("a strawberry", ("strawberry",)),
    EverydayPrompt("a pizza", ("pizza",)),
    EverydayPrompt("a burger", ("hamburger",)),
    EverydayPrompt("an ice cream", ("ice cream", "soft ice cream")),
    EverydayPrompt("a cake", ("birthday cake", "shortcake")),
    EverydayPrompt("a cup of coffee", ("hot beverage",)),
    EverydayPrompt("some bread", ("bread", "baguette bread")),
    EverydayPrompt("a carrot", ("carrot",)),
    EverydayPrompt("a book", _BOOKS),
    EverydayPrompt("a phone", ("mobile phone", "telephone", "mobile phone with arrow")),
    EverydayPrompt("a computer", ("laptop", "desktop computer")),
    EverydayPrompt("a camera", ("camera", "camera with flash")),
    EverydayPrompt("a key", ("key", "old key")),
    EverydayPrompt("a clock", _CLOCKS),
    EverydayPrompt("a guitar", ("guitar",)),
    EverydayPrompt("a ball", _BALLS),
    EverydayPrompt("a hat", ("top hat", "woman’s hat", "billed cap")),
    EverydayPrompt("a shirt", ("t-shirt", "running shirt", "necktie")),
    EverydayPrompt("a shoe", ("man’s shoe", "running shoe", "high-heeled shoe", "flat shoe")),
    EverydayPrompt(
        "an umbrella", ("umbrella", "umbrella with rain drops", "closed umbrella", "umbrella on ground")
    ),
    EverydayPrompt("a robot", ("robot",)),
    EverydayPrompt("a ghost", ("ghost",)),
    EverydayPrompt("a snowman", ("snowman", "snowman without snow")),
    EverydayPrompt("a rainbow", ("rainbow",)),
    EverydayPrompt("a mountain", ("mountain", "snow-capped mountain", "mount fuji")),
)

COLOURED = (
    ColouredPrompt("blue", "cat", _CATS),
    ColouredPrompt("purple", "dog", _DOGS),
    ColouredPrompt("green", "car", _CARS),
    ColouredPrompt("pink", "rocket", ("rocket",)),
    ColouredPrompt("purple", "house", _HOUSES),
    ColouredPrompt("red", "tree", _TREES),
    ColouredPrompt("yellow", "fish", ("fish", "tropical fish", "blowfish")),
    ColouredPrompt("red", "banana", ("banana",)),
    ColouredPrompt("blue", "apple", ("red apple", "green apple")),
    ColouredPrompt("green", "pig", ("pig", "pig face")),
    ColouredPrompt("red", "elephant", ("elephant",)),
    ColouredPrompt("blue", "rabbit", ("rabbit", "rabbit face")),
    ColouredPrompt("pink", "frog", ("frog",)),
    ColouredPrompt("green", "bear", ("bear", "polar bear")),
    ColouredPrompt("teal", "horse", ("horse", "horse face")),
    ColouredPrompt("blue", "strawberry", ("strawberry",)),
    ColouredPrompt("green", "guitar", ("guitar",)),
    ColouredPrompt("red", "key", ("key", "old key")),
    ColouredPrompt("orange", "umbrella", ("umbrella", "umbrella with rain drops", "closed umbrella")),
    ColouredPrompt("purple", "bus", ("bus", "oncoming bus", "trolleybus")),
    ColouredPrompt("orange", "robot", ("robot",)),
    ColouredPrompt("yellow", "truck", ("delivery truck", "articulated lorry", "pickup truck")),
    ColouredPrompt("blue", "star", ("star", "glowing star")),
    ColouredPrompt("pink", "boat", ("sailboat", "speedboat", "motor boat", "canoe", "ship")),
)

PAIRS = (
    "a cat and a dog", "a car next to a house", "an apple and a banana", "a tree next to a house",
    "a rocket and the moon", "a horse and a cow", "a book and a key", "a fox next to a tree",
)  # fmt: skip
COUNTS = ("two apples", "three stars", "two cats", "three cars")


def blind_choices(number: int) -> list[str]:
    """Return the prompts to choose from for picture `number` of `EVERYDAY`: its own and three others."""
    rng = random.Random(number)
    others = [prompt.text for index, prompt in enumerate(EVERYDAY) if index != number]
    choices = [EVERYDAY[number].text, *rng.sample(others, CHOICES - 1)]
    rng.shuffle(choices)
    return choices
