"""The words that `diva.data.sentences` puts into its templates: plain data, and the few facts about them."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in " ".join(text.split()).split(",") if phrase.strip())


def _pairs(text: str) -> dict[str, str]:
    """'key: value, key: value' -> dict. Several right values are separated by |."""
    return dict(pair.split(": ", 1) for pair in _phrases(text))  # type: ignore[misc]


ANIMALS = _words("""
    ant badger bat bear beaver bee beetle buffalo butterfly camel cat chicken cow crab crocodile crow deer dog
    dolphin donkey dragonfly duck eagle elephant falcon fox frog giraffe goat gorilla hamster hawk hedgehog
    hippo horse kangaroo kitten koala leopard lion lizard llama lobster monkey mosquito moth octopus ostrich
    otter owl panda parrot peacock pelican penguin pig pigeon pony puppy rabbit raccoon rat raven rhino robin
    rooster seal shark skunk snail snake sparrow spider squid squirrel swan tiger toad tortoise turkey turtle
    walrus wasp weasel whale wolf worm zebra""")

LEGS = _pairs("""
    ant: 6, bee: 6, beetle: 6, butterfly: 6, moth: 6, wasp: 6, mosquito: 6, dragonfly: 6, spider: 8, crab: 10,
    lobster: 10, chicken: 2, duck: 2, eagle: 2, ostrich: 2, owl: 2, penguin: 2, pigeon: 2, robin: 2, swan: 2,
    turkey: 2, parrot: 2, cat: 4, cow: 4, dog: 4, donkey: 4, elephant: 4, fox: 4, frog: 4, giraffe: 4,
    goat: 4, horse: 4, lion: 4, pig: 4, rabbit: 4, tiger: 4, turtle: 4, wolf: 4, zebra: 4, bear: 4, camel: 4,
    lizard: 4, snake: 0|no|none, worm: 0|no|none, snail: 0|no|none, whale: 0|no|none, shark: 0|no|none""")

BABIES = _pairs("""
    bear: cub, cat: kitten, cow: calf, deer: fawn, dog: puppy, duck: duckling, eagle: eaglet, elephant: calf,
    fox: cub|kit, frog: tadpole, goat: kid, goose: gosling, horse: foal, kangaroo: joey, koala: joey,
    lion: cub, owl: owlet, pig: piglet, seal: pup, sheep: lamb, swan: cygnet, tiger: cub, whale: calf,
    wolf: pup|cub""")

SOUNDS = _pairs("""
    cat: meow, cow: moo, dog: bark|woof, duck: quack, horse: neigh|whinny, lion: roar, owl: hoot, pig: oink,
    bee: buzz, sheep: baa|bleat, snake: hiss, wolf: howl, rooster: crow|cock-a-doodle-doo, crow: caw,
    donkey: bray|hee-haw, frog: croak|ribbit, turkey: gobble, mouse: squeak, bird: chirp|tweet""")

# Each ladder goes up, with steps so far apart that nobody argues over two neighbours.
SIZES = (
    _words("flea bee mouse rabbit fox sheep cow elephant house castle mountain country planet"),
    _words("seed coin apple pumpkin chair piano bus train stadium city moon star galaxy"),
)
SPEEDS = _words("snail turtle bicycle horse car train plane rocket")

CAPITALS = _pairs("""
    Afghanistan: Kabul, Albania: Tirana, Algeria: Algiers, Angola: Luanda, Argentina: Buenos Aires,
    Armenia: Yerevan, Australia: Canberra, Austria: Vienna, Bangladesh: Dhaka, Belgium: Brussels,
    Brazil: Brasilia, Bulgaria: Sofia, Cambodia: Phnom Penh, Cameroon: Yaounde, Canada: Ottawa,
    Chile: Santiago, China: Beijing, Colombia: Bogota, Croatia: Zagreb, Cuba: Havana, Cyprus: Nicosia,
    Denmark: Copenhagen, Ecuador: Quito, Egypt: Cairo, Estonia: Tallinn, Ethiopia: Addis Ababa,
    Finland: Helsinki, France: Paris, Georgia: Tbilisi, Germany: Berlin, Ghana: Accra, Greece: Athens,
    Guatemala: Guatemala City, Hungary: Budapest, Iceland: Reykjavik, India: New Delhi, Indonesia: Jakarta,
    Iran: Tehran, Iraq: Baghdad, Ireland: Dublin, Italy: Rome, Jamaica: Kingston, Japan: Tokyo, Jordan: Amman,
    Kenya: Nairobi, Latvia: Riga, Lebanon: Beirut, Libya: Tripoli, Lithuania: Vilnius, Malta: Valletta,
    Malaysia: Kuala Lumpur, Mexico: Mexico City, Mongolia: Ulaanbaatar, Morocco: Rabat, Nepal: Kathmandu,
    Nigeria: Abuja, Norway: Oslo, Pakistan: Islamabad, Panama: Panama City, Peru: Lima, Poland: Warsaw,
    Qatar: Doha, Portugal: Lisbon, Romania: Bucharest, Russia: Moscow, Rwanda: Kigali, Senegal: Dakar,
    Serbia: Belgrade, Singapore: Singapore, Slovakia: Bratislava, Slovenia: Ljubljana, Somalia: Mogadishu,
    Spain: Madrid, Sudan: Khartoum, Sweden: Stockholm, Syria: Damascus, Thailand: Bangkok, Tunisia: Tunis,
    Turkey: Ankara, Uganda: Kampala, Ukraine: Kyiv|Kiev, Uruguay: Montevideo, Venezuela: Caracas,
    Vietnam: Hanoi, Zambia: Lusaka, Zimbabwe: Harare""")

CONTINENTS = {
    country: continent
    for continent, countries in {
        "Africa": """
            Algeria Angola Cameroon Egypt Ethiopia Ghana Kenya Libya Morocco Nigeria Rwanda Senegal Somalia Sudan
            Tunisia Uganda Zambia Zimbabwe""",
        "Asia": """
            Afghanistan Bangladesh Cambodia China India Indonesia Iran Iraq Japan Jordan Lebanon Malaysia Mongolia
            Nepal Pakistan Qatar Singapore Syria Thailand Vietnam""",
        "Europe": """
            Albania Austria Belgium Bulgaria Croatia Denmark Estonia Finland France Germany Greece Hungary Iceland
            Ireland Italy Latvia Lithuania Malta Norway Poland Portugal Romania Serbia Slovakia Slovenia Spain
            Sweden Ukraine""",
        "North America": "Canada Cuba Guatemala Jamaica Mexico Panama",
        "South America": "Argentina Brazil Chile Colombia Ecuador Peru Uruguay Venezuela",
    }.items()
    for country in countries.split()
}

TONGUES = _pairs("""
    France: French, Germany: German, Spain: Spanish, Italy: Italian, Portugal: Portuguese, Brazil: Portuguese,
    Mexico: Spanish, Argentina: Spanish, Chile: Spanish, Peru: Spanish, Colombia: Spanish, Cuba: Spanish,
    Japan: Japanese, China: Chinese|Mandarin, Russia: Russian, Poland: Polish, Greece: Greek, Sweden: Swedish,
    Norway: Norwegian, Denmark: Danish, Finland: Finnish, Hungary: Hungarian, Turkey: Turkish, Egypt: Arabic,
    Iraq: Arabic, Jordan: Arabic, Syria: Arabic, Austria: German, Australia: English, Jamaica: English,
    Vietnam: Vietnamese, Thailand: Thai, Iceland: Icelandic, Ukraine: Ukrainian, Romania: Romanian,
    Iran: Persian|Farsi, Albania: Albanian, Bulgaria: Bulgarian, Croatia: Croatian, Serbia: Serbian,
    Mongolia: Mongolian, Nepal: Nepali""")

CITIES = _phrases("""
    Amsterdam, Athens, Atlanta, Baghdad, Bangkok, Barcelona, Beijing, Berlin, Boston, Brussels, Budapest,
    Cairo, Chicago, Copenhagen, Dallas, Delhi, Denver, Detroit, Dubai, Dublin, Edinburgh, Florence, Geneva,
    Glasgow, Havana, Helsinki, Hong Kong, Houston, Istanbul, Jerusalem, Lisbon, Liverpool, London, Los
    Angeles, Madrid, Manchester, Melbourne, Mexico City, Miami, Milan, Montreal, Moscow, Mumbai, Munich,
    Nairobi, Naples, New York, Osaka, Oslo, Oxford, Paris, Philadelphia, Phoenix, Prague, Rome, San Francisco,
    Seattle, Seoul, Shanghai, Singapore, Stockholm, Sydney, Tokyo, Toronto, Vancouver, Venice, Vienna, Warsaw,
    Washington, Zurich""")

LANGUAGES = _words("""
    Arabic Chinese Danish Dutch English Finnish French German Greek Hindi Italian Japanese Korean Latin
    Norwegian Polish Portuguese Russian Spanish Swedish Turkish Vietnamese""")

FRUITS = _words("""
    apple apricot banana cherry coconut grape grapefruit kiwi lemon lime mango melon orange papaya peach pear
    pineapple plum raspberry strawberry blueberry watermelon""")
VEGETABLES = _words("""beetroot cabbage carrot cauliflower leek lettuce onion parsnip potato radish turnip""")
DISHES = _phrases("""
    apple pie, banana bread, bean soup, beef stew, biscuits, bread, brownies, cheesecake, chicken curry,
    chicken soup, chocolate cake, coleslaw, dumplings, fish tacos, fried rice, fruit salad, garlic bread,
    gravy, guacamole, hamburgers, ice cream, lamb chops, lasagna, lemonade, macaroni, mashed potatoes,
    meatballs, muffins, mushroom soup, noodles, omelettes, onion soup, pancakes, pasta, pizza, popcorn, pork
    ribs, porridge, potato salad, pudding, pumpkin pie, ravioli, risotto, roast beef, roast turkey, salmon,
    sandwiches, scrambled eggs, spaghetti, sushi, toast, tomato soup, vegetable soup, waffles""")
GROCERIES = _phrases("""
    almonds, bacon, bananas, beans, bread, butter, candles, carrots, cereal, cheese, chicken, chocolate,
    coffee, cookies, cream, cucumbers, eggs, fish, flour, garlic, grapes, ham, honey, jam, juice, ketchup,
    lemons, lettuce, matches, milk, mushrooms, mustard, napkins, nuts, oats, olive oil, onions, oranges,
    pasta, peanut butter, pears, pepper, potatoes, rice, salt, sausages, shampoo, soap, spinach, sugar, tea,
    tissues, tomatoes, toothpaste, vinegar, yogurt""")
DRINKS = _phrases("""
    apple juice, beer, black coffee, cocoa, cold water, green tea, hot chocolate, lemonade, milk, orange
    juice, soda, sparkling water, tea, tomato juice, wine""")

JOBS = _phrases("""
    accountant, actor, architect, artist, astronaut, baker, banker, barber, biologist, builder, butcher,
    carpenter, chef, chemist, clown, coach, dancer, dentist, designer, detective, diplomat, doctor, driver,
    economist, editor, electrician, engineer, farmer, firefighter, florist, gardener, historian, janitor,
    jeweler, journalist, judge, lawyer, librarian, mechanic, midwife, miner, musician, nurse, painter,
    pharmacist, photographer, physicist, pilot, plumber, poet, police officer, politician, professor,
    programmer, psychologist, reporter, sailor, scientist, sculptor, secretary, singer, soldier, surgeon,
    tailor, teacher, translator, vet, waiter, writer""")

WORKPLACES = _pairs("""
    bakery: baker, library: librarian, hospital: doctor|nurse, school: teacher, farm: farmer,
    court: judge|lawyer, restaurant: waiter|chef|cook, laboratory: scientist|researcher, mine: miner,
    pharmacy: pharmacist, bank: banker|teller, theater: actor""")

OBJECTS = _words("""
    backpack ball basket battery bicycle blanket boat bottle box bracelet bridge brush bucket button
    calculator calendar camera candle carpet chair clock coat coin compass computer cup curtain desk
    dictionary door drum engine envelope fan fence flag flute fork fridge glove guitar hammer hat helicopter
    helmet iron jacket jar kettle key keyboard kite knife ladder lamp laptop lock magnet map microphone
    microscope microwave mirror necklace needle newspaper notebook oven paintbrush pan pen pencil phone piano
    pillow plate printer purse radio ring robot rope ruler saw scarf screwdriver shoe shovel sofa spoon
    stapler stove suitcase sword table telescope tent thermometer ticket toothbrush towel tractor trumpet
    umbrella vacuum vase violin wallet watch wheel whistle window wrench""")

INGREDIENTS = _phrases("""
    bacon, beans, beef, butter, cabbage, carrots, cheese, chicken, coconut milk, corn, eggs, fish, garlic,
    ginger, ham, honey, lamb, leeks, lemons, lentils, mushrooms, noodles, olives, onions, oranges, peas,
    peppers, pork, potatoes, rice, salmon, sausages, shrimp, spinach, tofu, tomatoes, tuna, turkey, yogurt,
    zucchini""")
BELONGINGS = _phrases("""
    bag, bicycle, camera, car, coat, computer, glasses, gloves, hat, headphones, jacket, keys, laptop, library
    book, luggage, notebook, passport, pencil, phone, purse, ring, scarf, shoes, suitcase, ticket, umbrella,
    wallet, watch""")
APPLIANCES = _phrases("""
    air conditioner, bathroom fan, bedroom light, boiler, ceiling fan, coffee machine, computer, dishwasher,
    doorbell, dryer, fireplace, freezer, garage light, garden lights, hallway lamp, heater, heating, kettle,
    kitchen light, microwave, oven, porch light, printer, radio, refrigerator, speaker, sprinkler, stove,
    television, toaster, vacuum cleaner, washing machine""")

COLORS = _pairs("""
    a banana: yellow, the sky: blue, grass: green, snow: white, coal: black, blood: red, a lemon: yellow, a
    carrot: orange, a frog: green, milk: white, a strawberry: red, a tomato: red, chocolate: brown, an
    elephant: gray|grey, a polar bear: white, the sun: yellow|white, a ruby: red, an emerald: green, a
    sapphire: blue, spinach: green, broccoli: green, a pumpkin: orange, a crow: black, a swan: white, a
    flamingo: pink, salt: white, sugar: white, a fire engine: red, an eggplant: purple, a cherry: red, a
    cucumber: green, cheese: yellow, corn: yellow, ketchup: red, mustard: yellow, the ocean: blue, a
    leaf: green, a school bus: yellow, charcoal: black, butter: yellow, a pea: green, a lime: green,
    rust: orange|brown|red, ivory: white, a raven: black, a blueberry: blue, a stop sign: red, an
    orange: orange, lettuce: green, a sunflower: yellow""")

OPPOSITES = _pairs("""
    hot: cold, big: small|little, tall: short, fast: slow, happy: sad|unhappy, up: down, left: right,
    open: closed|close|shut, early: late, light: dark|heavy, hard: soft|easy, wet: dry, full: empty,
    rich: poor, young: old, new: old, strong: weak, loud: quiet|soft, clean: dirty, long: short, high: low,
    thick: thin, wide: narrow, deep: shallow, rough: smooth, sweet: sour|bitter, sharp: dull|blunt, near: far,
    inside: outside, above: below|beneath, before: after, first: last, day: night, summer: winter,
    black: white, good: bad|evil, right: wrong|left, true: false, love: hate|hatred, win: lose, buy: sell,
    push: pull, give: take|receive, begin: end|finish, arrive: depart|leave, remember: forget, float: sink,
    laugh: cry, friend: enemy|foe, war: peace, heaven: hell, top: bottom, front: back|rear, east: west,
    north: south, safe: dangerous|unsafe, brave: cowardly|afraid, cheap: expensive,
    simple: complex|complicated|difficult, beautiful: ugly, asleep: awake, alive: dead, public: private,
    guilty: innocent, polite: rude|impolite, ancient: modern, success: failure, victory: defeat,
    increase: decrease, accept: reject|refuse, remove: add, create: destroy, attack: defend|defense,
    always: never, everything: nothing, male: female, possible: impossible, tight: loose, shiny: dull,
    question: answer, life: death, entrance: exit, major: minor, maximum: minimum, positive: negative,
    optimist: pessimist, import: export, future: past""")

PLURALS = _pairs("""
    mouse: mice, child: children, foot: feet, tooth: teeth, goose: geese, man: men, woman: women,
    person: people|persons, ox: oxen, leaf: leaves, knife: knives, wolf: wolves, wife: wives, life: lives,
    shelf: shelves, half: halves, loaf: loaves, thief: thieves, city: cities, baby: babies, story: stories,
    party: parties, lady: ladies, berry: berries, box: boxes, fox: foxes, bus: buses, glass: glasses,
    dish: dishes, watch: watches, church: churches, brush: brushes, potato: potatoes, tomato: tomatoes,
    hero: heroes, fish: fish|fishes, sheep: sheep, deer: deer, cactus: cacti|cactuses, bench: benches,
    peach: peaches, witch: witches, country: countries, family: families, penny: pennies|pence,
    butterfly: butterflies, scarf: scarves|scarfs, calf: calves, dress: dresses, sandwich: sandwiches,
    tax: taxes, wish: wishes, nurse: nurses, horse: horses, bridge: bridges, piano: pianos, key: keys,
    monkey: monkeys, mosquito: mosquitoes|mosquitos, crisis: crises, lobster: lobsters, candle: candles,
    window: windows""")

PAST_TENSES = _pairs("""
    go: went, eat: ate, see: saw, run: ran, write: wrote, drink: drank, sing: sang, swim: swam, take: took,
    give: gave, come: came, speak: spoke, break: broke, choose: chose, drive: drove, fly: flew,
    forget: forgot, freeze: froze, grow: grew, hide: hid, know: knew, ride: rode, rise: rose, shake: shook,
    steal: stole, throw: threw, wake: woke, wear: wore, win: won, buy: bought, bring: brought, catch: caught,
    teach: taught, think: thought, fight: fought, find: found, feel: felt, keep: kept, sleep: slept,
    leave: left, lose: lost, meet: met, sell: sold, tell: told, build: built, send: sent, spend: spent,
    stand: stood, understand: understood, hold: held, hear: heard, make: made, pay: paid, say: said, sit: sat,
    begin: began, become: became, draw: drew, fall: fell, dig: dug, hang: hung, shine: shone|shined,
    shoot: shot, stick: stuck, swear: swore, sweep: swept, bite: bit, blow: blew, bend: bent""")

TRANSLATIONS = {
    "French": _pairs("""
    dog: chien, cat: chat, house: maison, water: eau, bread: pain, book: livre, friend: ami|amie, red: rouge,
    milk: lait, sun: soleil, moon: lune, horse: cheval, apple: pomme, day: jour, night: nuit,
    school: école|ecole, fish: poisson, hand: main, thank you: merci, goodbye: au revoir, good
    morning: bonjour, please: s'il vous plaît, tree: arbre, flower: fleur, love: amour, king: roi,
    city: ville, cheese: fromage, bird: oiseau"""),
    "Spanish": _pairs("""
    dog: perro, cat: gato, house: casa, water: agua, bread: pan, book: libro, friend: amigo|amiga, red: rojo,
    milk: leche, sun: sol, moon: luna, horse: caballo, apple: manzana, day: día|dia, night: noche,
    school: escuela, fish: pez|pescado, hand: mano, thank you: gracias, goodbye: adiós|adios, good
    morning: buenos días|buenos dias, please: por favor, tree: árbol|arbol, flower: flor, love: amor,
    king: rey, city: ciudad, cheese: queso, bird: pájaro|pajaro|ave"""),
    "German": _pairs("""
    dog: Hund, cat: Katze, house: Haus, water: Wasser, bread: Brot, book: Buch, friend: Freund|Freundin,
    red: rot, milk: Milch, sun: Sonne, moon: Mond, horse: Pferd, apple: Apfel, day: Tag, night: Nacht,
    school: Schule, fish: Fisch, hand: Hand, thank you: danke, goodbye: auf Wiedersehen, good morning: guten
    Morgen, please: bitte, tree: Baum, flower: Blume, love: Liebe, king: König|Koenig, city: Stadt,
    cheese: Käse|Kaese, bird: Vogel"""),
    "Italian": _pairs("""
    dog: cane, cat: gatto, house: casa, water: acqua, bread: pane, book: libro, friend: amico|amica,
    red: rosso, milk: latte, sun: sole, moon: luna, horse: cavallo, apple: mela, day: giorno, night: notte,
    school: scuola, fish: pesce, hand: mano, thank you: grazie, goodbye: arrivederci|addio, good
    morning: buongiorno|buon giorno, please: per favore, tree: albero, flower: fiore, love: amore, king: re,
    city: città|citta, cheese: formaggio, bird: uccello"""),
}

INSTRUMENTS = _words(
    "accordion banjo cello clarinet drum flute guitar harp piano saxophone trombone trumpet violin"
)
SPORTS = _words("""
    archery badminton baseball basketball bowling boxing cricket cycling fencing football golf gymnastics
    hockey judo rowing rugby running sailing skating skiing soccer surfing swimming tennis volleyball
    wrestling yoga""")
# Kind of thing -> things of that kind.
KINDS = {
    "fruit": FRUITS,
    "vegetable": VEGETABLES,
    "instrument": INSTRUMENTS,
    "bird": _words(
        "crow duck eagle falcon hawk ostrich owl parrot peacock pelican penguin pigeon robin sparrow swan"
    ),
    "insect": _words("ant bee beetle butterfly dragonfly grasshopper mosquito moth wasp"),
    "mammal": _words(
        "bear camel cow deer dolphin elephant fox giraffe goat horse lion rabbit tiger whale wolf zebra"
    ),
    "tool": _words("chisel drill hammer pliers rake saw screwdriver shovel wrench"),
    "vehicle": _words("""
    ambulance bicycle boat bus car helicopter motorcycle plane ship taxi tractor train truck van"""),
    "flower": _words("carnation daffodil daisy lily orchid rose sunflower tulip violet"),
    "tree": _words("birch cedar maple oak pine willow"),
    "reptile": _words("crocodile lizard snake tortoise turtle"),
    "sport": SPORTS,
    "metal": _words("aluminum copper gold iron lead nickel silver steel tin zinc"),
    "color": _words("black blue brown crimson gray green pink purple red turquoise white yellow"),
    "piece of clothing": _words("""
    blouse coat dress glove hat jacket scarf shirt shoe skirt sock sweater vest"""),
    "piece of furniture": _words("armchair bookshelf chair couch cupboard desk dresser sofa table wardrobe"),
}
UNCOUNTED_KINDS = ("sport", "metal", "color")  # their words take no article

FEELINGS = _words("""
    afraid alone angry anxious ashamed awful bored brave calm cheerful clumsy confident confused curious
    disappointed dizzy embarrassed energetic excited exhausted fantastic free frustrated furious generous
    gloomy grateful great guilty happy helpless homesick hopeful hungry impatient inspired jealous joyful lazy
    lonely lost lucky miserable nervous optimistic overwhelmed peaceful playful proud puzzled relaxed relieved
    restless sad scared shy sick silly sleepy stressed strong stupid surprised thankful thirsty tired
    uncomfortable weak weird wonderful worried""")
BODY_PARTS = _words("""
    ankle arm back chest ear elbow eye finger foot hand head heel hip jaw knee leg neck nose shoulder stomach
    throat thumb toe tongue tooth wrist""")
PEOPLE = _phrases("""
    my aunt, my boss, my brother, my cousin, my daughter, my doctor, my father, my friend, my grandfather, my
    grandmother, my husband, my landlord, my mother, my neighbor, my nephew, my niece, my sister, my son, my
    teacher, my uncle, my wife""")
NAMES = _words("""
    Adam Alice Amy Anna Ben Carol Charles Charlotte Daniel David Diana Edward Elizabeth Emily Emma Frank
    George Grace Hannah Harry Helen Henry Jack James Jane Jennifer John Julia Karen Kevin Laura Lisa Lucy
    Margaret Mark Martin Mary Michael Nancy Oliver Patrick Paul Peter Rachel Richard Robert Rose Sam Sarah
    Simon Sophie Steven Susan Thomas Victoria William""")
SUBJECTS = _words("""
    algebra architecture art astronomy biology business chemistry computers dance design drama economics
    engineering fashion geography geology geometry grammar history law literature logic mathematics medicine
    music philosophy photography physics poetry politics programming psychology religion robotics sociology
    statistics""")
TOPICS = _phrases("""
    ancient Egypt, autumn, black holes, cameras, cancer, climate change, clouds, comets, coral reefs, courage,
    democracy, diamonds, dinosaurs, dreams, earthquakes, electric cars, electricity, evolution, fairies, fire,
    fireworks, freedom, friendship, ghosts, glaciers, gravity, happiness, honesty, hurricanes, inflation,
    insects, interest rates, kindness, knights, lasers, lightning, love, magnets, memory, mermaids, money,
    mountains, museums, nuclear power, oceans, oxygen, patience, photosynthesis, pirates, planets, plastic,
    pollution, probability, pyramids, radio waves, rain, rainbows, recycling, rivers, rockets, satellites,
    shadows, sleep, snow, solar energy, space travel, spring, stars, steam engines, sunsets, taxes, the brain,
    the desert, the forest, the heart, the internet, the moon, the Olympics, the Roman Empire, the sea, the
    stock market, the sun, the weather, the wind, thunder, tides, time, tornadoes, trains, vaccines, vampires,
    viruses, vitamins, volcanoes, waterfalls, weddings, winter, wizards""")
ADJECTIVES = _words("""
    brief cheerful clever dark exciting funny gentle happy long magical modern mysterious rhyming romantic sad
    scary serious short silly simple strange sweet""")
OCCASIONS = _phrases("""
    a beach party, a birthday party, a business dinner, a camping trip, a concert, a costume party, a dance
    class, a date, a family dinner, a football game, a funeral, a garden party, a graduation, a hike, a
    holiday party, a job interview, a museum visit, a picnic, a ski trip, a wedding, a yoga class, church,
    school, the airport, the ballet, the gym, the office, the opera, the park, the theater, the zoo""")
CHORES = _phrases("""
    bake the cake, brush the dog, buy flowers, buy some milk, call the bank, call the dentist, change the
    sheets, charge my phone, check my email, clean the bathroom, clean the kitchen, collect the parcel, cook
    dinner, cut the grass, do my homework, do the laundry, drink more water, empty the trash, feed the cat,
    feed the fish, finish the report, fix the fence, iron my shirt, lock the door, mail the letter, make the
    bed, order a taxi, pack my bags, paint the wall, pay the rent, plant some seeds, practice the piano, print
    the tickets, read a book, renew my passport, return the books, send the invoice, stretch my legs, study
    for the exam, sweep the floor, take a break, take my medicine, take out the trash, thank the driver, visit
    the doctor, walk the dog, wash the car, wash the dishes, water the plants, write the essay""")
SKILLS = _phrases("""
    bake bread, boil an egg, build a chair, catch a fish, change a tire, clean an oven, climb a tree, draw a
    face, drive a car, fix a leak, fold a shirt, fry an egg, grow tomatoes, hang a picture, hold a baby, jump
    a rope, juggle, knit a sweater, light a fire, make cheese, make soap, milk a cow, open a bank account,
    paint a room, peel a mango, plant a tree, play chess, play poker, polish shoes, remove a stain, repair a
    watch, ride a horse, save money, sew a button, sharpen a knife, ski, start a business, stop snoring, swim,
    take good photos, tell a joke, tie a tie, train a puppy, type faster, wash a sweater, whistle, win at
    cards, wrap a present, write a letter""")
PLACES = _phrases("""
    airport, bakery, bank, barber, beach, bookstore, bus stop, cafe, castle, church, cinema, dentist,
    drugstore, factory, fire station, gas station, gym, harbor, hospital, hotel, lake, library, market,
    museum, palace, park, pharmacy, playground, police station, post office, restaurant, school, shopping
    mall, stadium, supermarket, swimming pool, temple, theater, toy store, train station, university, zoo""")
INVENTIONS = _phrases("""
    airplane, bicycle, camera, clock, compass, computer, elevator, engine, helicopter, internet, lamp, light
    bulb, microscope, microwave, paper clip, piano, printing press, radio, refrigerator, sewing machine, steam
    engine, submarine, telephone, telescope, television, thermometer, toothbrush, typewriter, umbrella,
    zipper""")
MUSIC = _phrases("""
    ballads, blues, classical music, country music, dance music, disco, drum music, folk songs, gospel, guitar
    music, happy songs, hip hop, jazz, love songs, lullabies, old hits, opera, party music, piano music, pop
    music, punk, quiet music, reggae, rock music, sad songs, salsa, soul, techno, violin music""")
ACTIVITIES = _phrases("""
    baking, bird watching, camping, chess, cleaning, climbing, cooking, dancing, dieting, drawing, driving,
    fishing, flying, gardening, hiking, hunting, jogging, juggling, knitting, meditation, painting, parenting,
    pottery, public speaking, reading, sewing, shopping, singing, skiing, sleeping, studying, swimming,
    teaching, traveling, walking, weight lifting, working from home, writing""")

AUTHORS = _pairs("""
    Hamlet: Shakespeare, Macbeth: Shakespeare, Romeo and Juliet: Shakespeare, Oliver Twist: Dickens, Great
    Expectations: Dickens, Pride and Prejudice: Austen, War and Peace: Tolstoy, Anna Karenina: Tolstoy, The
    Hobbit: Tolkien, Frankenstein: Shelley, Dracula: Stoker, Moby Dick: Melville, Jane Eyre: Bronte, Don
    Quixote: Cervantes, Animal Farm: Orwell, The Odyssey: Homer, Tom Sawyer: Twain, Peter Pan: Barrie,
    Treasure Island: Stevenson, The Jungle Book: Kipling, Alice in Wonderland: Carroll, Faust: Goethe, The
    Time Machine: Wells, Crime and Punishment: Dostoevsky, Robinson Crusoe: Defoe, Ulysses: Joyce""")
FACTS = {
    "How many days are in a week?": "7|seven",
    "How many months are in a year?": "12|twelve",
    "How many hours are in a day?": "24|twenty-four",
    "How many minutes are in an hour?": "60|sixty",
    "How many seconds are in a minute?": "60|sixty",
    "How many weeks are in a year?": "52|fifty-two",
    "How many years are in a century?": "100|hundred",
    "How many years are in a decade?": "10|ten",
    "How many letters are in the alphabet?": "26|twenty-six",
    "How many sides does a triangle have?": "3|three",
    "How many sides does a square have?": "4|four",
    "How many sides does a hexagon have?": "6|six",
    "How many inches are in a foot?": "12|twelve",
    "How many feet are in a yard?": "3|three",
    "How many continents are there?": "7|seven",
    "How many planets orbit the sun?": "8|eight",
    "How many eggs are in a dozen?": "12|twelve",
    "How many wheels does a bicycle have?": "2|two",
    "How many strings does a violin have?": "4|four",
    "How many players are on a soccer team?": "11|eleven",
    "Which planet is closest to the sun?": "Mercury",
    "Which planet is the largest?": "Jupiter",
    "Which planet is known as the red planet?": "Mars",
    "What is the largest ocean on Earth?": "Pacific",
    "What is the tallest mountain on Earth?": "Everest",
    "What is the largest animal on Earth?": "blue whale",
    "What is frozen water called?": "ice",
    "What gas do plants take in?": "carbon dioxide",
    "What gas do humans need to breathe?": "oxygen",
    "What is the chemical symbol for gold?": "Au",
    "What is the chemical symbol for iron?": "Fe",
    "What is the chemical symbol for oxygen?": "O",
    "Who painted the Mona Lisa?": "Leonardo|da Vinci",
    "Who was the first man on the moon?": "Armstrong",
    "Who discovered gravity?": "Newton",
    "Who developed the theory of relativity?": "Einstein",
    "What do bees make?": "honey",
    "What do caterpillars turn into?": "butterflies|butterfly|moths",
    "What organ pumps blood through the body?": "heart",
    "Which season comes after winter?": "spring",
    "Which season comes after summer?": "autumn|fall",
    "Which direction does the sun rise?": "east",
    "At what temperature does water freeze?": "0|zero|32|thirty-two",
}
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
SMALL_TALK = (
    "How are you today?",
    "What is your name?",
    "How old are you?",
    "Where do you come from?",
    "Can you help me?",
    "Thank you very much.",
    "Good morning, how are you?",
    "Good night, sleep well.",
    "Nice to meet you.",
    "What can you do?",
    "Are you a real person?",
    "Do you ever sleep?",
    "Please say that again.",
    "I did not understand that.",
    "Can you speak more slowly?",
    "That is not what I meant.",
    "You are very funny.",
    "Tell me something new.",
    "What is the meaning of life?",
    "What day is it today?",
    "What time is it now?",
    "Please stop the music.",
    "Turn the volume down a bit.",
    "Do you have any friends?",
    "What makes you happy?",
    "I am bored, entertain me.",
    "Can we play a game?",
    "I cannot sleep tonight.",
    "I had a really bad day.",
    "I got a new job today!",
    "Today is my birthday.",
    "I love you, computer.",
    "What should I do this weekend?",
    "What should I eat for dinner?",
    "Read me the news.",
    "Flip a coin for me.",
    "Pick a number between one and ten.",
    "Who are you talking to?",
    "See you later, my friend.",
    "Are you listening to me?",
)
