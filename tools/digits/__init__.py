"""A small reproduction of the deep weight prior's first experiment: from letters to digits."""
