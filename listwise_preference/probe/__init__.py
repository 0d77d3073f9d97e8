"""Does the policy look at the object, or does it detect masked boxes?"""
