"""From pairs and images to ranked image lists: name the critical object, find its box, prove that hiding it matters.

``critical_object`` names objects from the texts, ``detect`` (``annotations``, ``zero_shot``) finds their boxes,
``verify`` asks a model whether the answer still holds with the object hidden, ``build`` runs the three in rounds over
many records, ``store`` keeps what is done, ``command`` puts the program together. ``review``, ``summary`` and
``export`` show and hand on the result.
"""
