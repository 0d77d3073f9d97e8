"""English words for finding objects in captions and responses: which nouns are objects and which are not.

The lists are written for the language of image descriptions; a word that is in none of them is judged by its tag.
"""


def words(text: str) -> frozenset[str]:
    """Words apart by spaces, or terms of several words apart by commas."""
    separator = "," if "," in text else None
    return frozenset(" ".join(term.split()) for term in text.split(separator))


COLOURS = words("""
    red orange yellow green blue purple violet pink brown black white gray grey beige tan maroon turquoise teal navy""")
MATERIALS = words("""
    metal plastic steel concrete leather marble gold silver bronze copper aluminum granite cotton denim wool silk velvet
    ceramic porcelain rubber wicker asphalt cobblestone""")
# Left out at the start of a compound, though some are objects by themselves.
NOT_MODIFIERS = (COLOURS | MATERIALS) | words("""
    wood stone brick glass iron bamboo cardboard left right top bottom center centre middle back background foreground
    image picture photo photograph""")
# Compounds that the tagger or the other lists would take apart.
COMPOUNDS = words("""
    hot dog, french fry, french toast, high chair, teddy bear, stuffed animal, stuffed bear, stuffed toy, remote
    control, cell phone, cellular phone, mobile phone, polar bear, grizzly bear, potted plant, ice cream, hard hat,
    brown bear, electric guitar, acoustic guitar, solar panel, grand piano, hot tub, christmas tree, orange juice,
    orange tree, rubber duck, rubber band, glass bottle, wine glass, picture frame, photo frame, picture book, photo
    album, photo booth, door frame, window frame, bed frame, bald eagle, guinea pig, sweet potato, magnifying glass,
    parking lot, parking space, sleeping bag, drinking glass, drinking fountain, rocking chair, rocking horse, rolling
    pin, climbing wall, changing table, landing gear, skating rink, racing car, diving board, playing card, playing
    field, carving knife, reading glasses, riding boot, running shoe, hanging basket, walking stick, writing desk,
    gaming console, stop sign, bus stop, christmas light, easter egg, front door, back door, side table, top hat, gold
    medal, music stand, light bulb, computer game, board game, video game, tree line, power line, clothes line, shower
    head, hot air balloon""")
# Words in -ing that begin a compound before any noun, and those that are objects; the rest are verbs or activities.
ING_MODIFIERS = words("""
    dining living parking cutting frying swimming washing shopping sewing baking mixing chopping ironing vending bathing
    fishing hiking serving measuring waiting dressing boxing bowling watering wading wedding building ceiling""")
ING_THINGS = words("""
    building ceiling painting railing ring earring string wing king clothing awning drawing pudding dressing icing
    frosting topping stuffing bedding crossing carving sibling duckling dumpling seedling herring spring sling swing
    stocking opening wiring piping flooring siding wrapping""")
# Common objects that the tagger, trained on newspapers, often takes for adjectives or verbs.
THINGS = words("""
    person man woman child boy girl baby toddler kid lady guy policeman policewoman fireman firefighter skateboarder
    snowboarder surfer skier skater biker bicyclist cyclist motorcyclist rider pedestrian passenger player batter
    catcher pitcher umpire chef waiter waitress bride groom farmer astronaut
    dog puppy cat kitten bird duck goose swan pigeon seagull parrot owl eagle horse pony zebra giraffe elephant bear cow
    bull sheep lamb goat pig monkey lion tiger deer moose rabbit squirrel fish turtle frog butterfly bee teddy
    car truck bus van taxi train tram bicycle bike motorcycle scooter boat ship kayak canoe airplane plane helicopter
    tractor trailer wagon carriage
    bench chair sofa couch bed table desk lamp shelf bookshelf cabinet drawer dresser mirror rug carpet curtain pillow
    blanket towel clock vase candle
    laptop keyboard monitor computer phone cellphone smartphone camera television tv microwave oven stove toaster
    refrigerator fridge sink toilet bathtub shower faucet
    cup mug bottle bowl plate fork knife spoon napkin tray basket jar kettle pot pan
    pizza sandwich burger cake donut doughnut cookie bread banana apple orange pear grape strawberry blueberry lemon
    pineapple watermelon tomato lettuce onion carrot broccoli potato pepper mushroom cucumber cheese egg rice soup salad
    meat chicken shrimp sausage bacon coffee beer wine
    hat cap helmet shirt t-shirt jacket coat sweater hoodie dress skirt suit tie scarf glove shoe boot sandal sock belt
    glasses sunglasses goggles necklace bracelet backpack bag handbag purse suitcase umbrella wetsuit apron uniform
    ball bat frisbee kite skateboard snowboard surfboard ski racket hydrant sidewalk street kitchen bathroom bedroom
    tree bush flower rose grass leaf branch rock hill mountain river lake beach ocean window door wall roof fence tower
    bridge church statue sign pole flag balloon book newspaper pencil scissors toothbrush hairbrush guitar piano toy""")
# Verbs of descriptions that the tagger joins to the noun before them ("the boy swings a bat").
VERBS = words("""
    stand sit lie lean walk run ride jump fly hang rest sleep swim swing look watch wear hold carry rise hover crouch
    pose graze perch float drive play eat drink catch kick throw hit push pull reach cover surround fill line face show
    feature share contain include display enjoy smile wait gather stretch climb lead bend point attach""")

# No nouns in descriptions, whatever the tagger says; the last set where a sentence begins with them.
ADJECTIVES = words("""
    small large big little tiny huge tall short long wide narrow thick thin deep old young new modern round square flat
    curved straight dark bright light-colored pale colorful colourful shiny glossy wooden open closed empty full clear
    sunny cloudy snowy rainy sandy grassy rocky dirty clean wet dry busy quiet lush green nice cute beautiful similar
    different various multiple several many few other own same main only single double whole entire next more most
    upper lower inner outer front-facing nearby close far high low well overall indoor outdoor smiling male female
    blond blonde elderly lone bare plush wild eaten overhead like""")
PREPOSITIONS = words("""
    about above across against along alongside amid among amongst around atop behind below beneath beside between beyond
    inside near onto outside over through throughout toward towards under underneath upon within""")
IMPERATIVES = words("""
    describe list explain identify write tell provide give name look analyze analyse generate create summarize count
    imagine compare discuss answer please can could is are does do what which who where how why""")

# These give way to what follows "of".
PORTIONS = words("""
    slice piece loaf stack pile bunch heap row line herd flock crowd pack set chunk serving model cluster couple body
    swarm school team batch load sheet trio duo pool gang fleet""")
NOT_VISIBLE = (
    (COLOURS - {"orange"})
    | MATERIALS
    | words("""
    image picture photo photograph photography pic snapshot shot scene view close-up closeup frame footage video caption
    description sentence word phrase title answer question response option choice statement detail instruction task
    context content story summary example instance overview
    left right side top bottom front back middle center centre corner edge end rear background foreground distance
    direction position place spot location area region section part portion half zone space point surface rest height
    width length size level angle perspective viewpoint viewer observer vicinity interior exterior inside outside bit
    surroundings environment setting backdrop midst air mid-air midair sight north south east west world nature
    number amount total count quantity lot plenty dozen hundred thousand million pair group variety range array
    assortment collection selection series kind type sort style form majority multitude handful mix mixture percent
    one other another thing object item element feature aspect component stuff something anything everything nothing
    someone anyone everyone somebody anybody everybody nobody none yes no
    colour color hue tone shade pattern design shape texture contrast lighting look appearance sunlight daylight
    time day night morning afternoon evening noon midnight today moment minute hour second week month year season summer
    winter autumn decade century date period past present future daytime nighttime weekend holiday vacation event
    birthday anniversary party festival trip journey ride visit travel christmas halloween easter
    way manner reason purpose cause result effect impact fact idea concept thought opinion sense feeling mood atmosphere
    ambiance ambience vibe charm beauty joy fun love peace calm comfort interest focus pose posture gesture smile gaze
    glance lack hint clue bond chat game match sport soccer golf hockey rugby tennis yoga music sound noise
    voice smell taste flavor flavour aroma weather temperature climate heat breeze health life lifestyle
    art culture history religion business company brand name price cost value work job project duty role career
    profession skill talent knowledge practice exercise trick stunt turn move race contest adventure hobby break chance
    need desire help support care service use usage benefit advantage meaning theme subject topic plan goal aim attempt
    effort success failure problem issue risk danger safety hazard law rule order layout system process method technique
    step stage phase progress growth change speed pace rate power energy force weight volume depth state status nature
    trait factor breed gender age mind memory dream hope luck fear surprise attitude behavior behaviour character
    romance chaos portrait piece base habitat camaraderie teamwork touch contact motion mode play trade sale access
    control ease twilight landscape sip district st""")
)
ABSTRACT_ENDINGS = ("ness", "ity", "tion", "sion", "ism", "ance", "ence", "ment", "hood", "ology")
VISIBLE_DESPITE_ENDING = words("""
    harness witness lioness wilderness city university celebrity station intersection reflection vegetation plantation
    television mansion ambulance fence entrance appliance audience residence neighborhood pavement equipment monument
    instrument apartment garment ornament basement cement condiment document compartment""")
# Balls and games at once: the object where a determiner or an owner is before it.
BALLS = words("baseball basketball football volleyball softball")
