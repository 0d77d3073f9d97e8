"""From pairs and images to ranked image lists: name the critical object, find its box, prove that masking it matters.

``english`` names objects from the texts, ``detectors`` find their boxes, ``verify`` asks a model whether the response
still holds with the object masked, ``build`` runs the three in rounds over many records, ``store`` keeps what is
done, ``command`` puts the program together. ``review``, ``summary`` and ``export`` show and hand on the result.
"""
