"""Prompts that nobody has sent before: words at random, so that no cache of prompts has met their beginning."""

from __future__ import annotations

import random

# One token each, with the space before it, in most vocabularies.
_LIST = """
about above after again air all also animal answer apple area arm ask away back ball bank base bear bed bird black
blue board boat body book bread bridge bring build call camp car care case cat chair child city class clear clock
cloud coast cold color cook corner cost country course cover cross cup dark day deep desk door down draw dream drive
dry dust early earth east eat edge egg engine even eye face fact fall farm fast field fire fish floor flow food foot
forest friend front game garden glass gold good grass great green ground group hand hard heart heat high hill home
horse hour house ice island job key king lake land large late leaf learn left letter light line list little long
love low main map mark market mind money moon morning mountain music name near night north ocean office old open
order page paper part path peace picture place plan plant point power queen rain read red rest rice ring river road
rock roof room rule run sand school sea ship shop silver sky snow sound south space star stone story street summer
sun table time town train tree village voice walk wall water way week west white wind window winter wood word work
world year yellow young
"""
WORDS = _LIST.split()
_random = random.SystemRandom()


def words(count: int) -> list[str]:
    return _random.choices(WORDS, k=count)
