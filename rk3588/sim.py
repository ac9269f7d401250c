"""Where ``packaged`` was: programs that find the libraries by it go on doing so."""

from .resources import packaged as packaged
