"""Questions and what counts as their answers, alternatives separated by |: for `diva.data.corpora.spoken.sentences`."""

from diva.data.corpora.spoken.vocabulary import FRUITS, INSTRUMENTS, SPORTS, VEGETABLES, pairs, words

LEGS = pairs("""
    ant: 6, bee: 6, beetle: 6, butterfly: 6, moth: 6, wasp: 6, mosquito: 6, dragonfly: 6, spider: 8, crab: 10,
    lobster: 10, chicken: 2, duck: 2, eagle: 2, ostrich: 2, owl: 2, penguin: 2, pigeon: 2, robin: 2, swan: 2,
    turkey: 2, parrot: 2, cat: 4, cow: 4, dog: 4, donkey: 4, elephant: 4, fox: 4, frog: 4, giraffe: 4,
    goat: 4, horse: 4, lion: 4, pig: 4, rabbit: 4, tiger: 4, turtle: 4, wolf: 4, zebra: 4, bear: 4, camel: 4,
    lizard: 4, snake: 0|no|none, worm: 0|no|none, snail: 0|no|none, whale: 0|no|none, shark: 0|no|none""")

BABIES = pairs("""
    bear: cub, cat: kitten, cow: calf, deer: fawn, dog: puppy, duck: duckling, eagle: eaglet, elephant: calf,
    fox: cub|kit, frog: tadpole, goat: kid, goose: gosling, horse: foal, kangaroo: joey, koala: joey,
    lion: cub, owl: owlet, pig: piglet, seal: pup, sheep: lamb, swan: cygnet, tiger: cub, whale: calf,
    wolf: pup|cub""")

SOUNDS = pairs("""
    cat: meow, cow: moo, dog: bark|woof, duck: quack, horse: neigh|whinny, lion: roar, owl: hoot, pig: oink,
    bee: buzz, sheep: baa|bleat, snake: hiss, wolf: howl, rooster: crow|cock-a-doodle-doo, crow: caw,
    donkey: bray|hee-haw, frog: croak|ribbit, turkey: gobble, mouse: squeak, bird: chirp|tweet""")

# Each ladder is in ascending order. Its steps are so large that the order of two neighbours is clear.
SIZES = (
    words("flea bee mouse rabbit fox sheep cow elephant house castle mountain country planet"),
    words("seed coin apple pumpkin chair piano bus train stadium city moon star galaxy"),
)

SPEEDS = words("snail turtle bicycle horse car train plane rocket")

CAPITALS = pairs("""
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

TONGUES = pairs("""
    France: French, Germany: German, Spain: Spanish, Italy: Italian, Portugal: Portuguese, Brazil: Portuguese,
    Mexico: Spanish, Argentina: Spanish, Chile: Spanish, Peru: Spanish, Colombia: Spanish, Cuba: Spanish,
    Japan: Japanese, China: Chinese|Mandarin, Russia: Russian, Poland: Polish, Greece: Greek, Sweden: Swedish,
    Norway: Norwegian, Denmark: Danish, Finland: Finnish, Hungary: Hungarian, Turkey: Turkish, Egypt: Arabic,
    Iraq: Arabic, Jordan: Arabic, Syria: Arabic, Austria: German, Australia: English, Jamaica: English,
    Vietnam: Vietnamese, Thailand: Thai, Iceland: Icelandic, Ukraine: Ukrainian, Romania: Romanian,
    Iran: Persian|Farsi, Albania: Albanian, Bulgaria: Bulgarian, Croatia: Croatian, Serbia: Serbian,
    Mongolia: Mongolian, Nepal: Nepali""")

WORKPLACES = pairs("""
    bakery: baker, library: librarian, hospital: doctor|nurse, school: teacher, farm: farmer,
    court: judge|lawyer, restaurant: waiter|chef|cook, laboratory: scientist|researcher, mine: miner,
    pharmacy: pharmacist, bank: banker|teller, theater: actor""")

COLORS = pairs("""
    a banana: yellow, the sky: blue, grass: green, snow: white, coal: black, blood: red, a lemon: yellow, a
    carrot: orange, a frog: green, milk: white, a strawberry: red, a tomato: red, chocolate: brown, an
    elephant: gray|grey, a polar bear: white, the sun: yellow|white, a ruby: red, an emerald: green, a
    sapphire: blue, spinach: green, broccoli: green, a pumpkin: orange, a crow: black, a swan: white, a
    flamingo: pink, salt: white, sugar: white, a fire engine: red, an eggplant: purple, a cherry: red, a
    cucumber: green, cheese: yellow, corn: yellow, ketchup: red, mustard: yellow, the ocean: blue, a
    leaf: green, a school bus: yellow, charcoal: black, butter: yellow, a pea: green, a lime: green,
    rust: orange|brown|red, ivory: white, a raven: black, a blueberry: blue, a stop sign: red, an
    orange: orange, lettuce: green, a sunflower: yellow""")

OPPOSITES = pairs("""
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

PLURALS = pairs("""
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

PAST_TENSES = pairs("""
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
    "French": pairs("""
    dog: chien, cat: chat, house: maison, water: eau, bread: pain, book: livre, friend: ami|amie, red: rouge,
    milk: lait, sun: soleil, moon: lune, horse: cheval, apple: pomme, day: jour, night: nuit,
    school: école|ecole, fish: poisson, hand: main, thank you: merci, goodbye: au revoir, good
    morning: bonjour, please: s'il vous plaît, tree: arbre, flower: fleur, love: amour, king: roi,
    city: ville, cheese: fromage, bird: oiseau"""),
    "Spanish": pairs("""
    dog: perro, cat: gato, house: casa, water: agua, bread: pan, book: libro, friend: amigo|amiga, red: rojo,
    milk: leche, sun: sol, moon: luna, horse: caballo, apple: manzana, day: día|dia, night: noche,
    school: escuela, fish: pez|pescado, hand: mano, thank you: gracias, goodbye: adiós|adios, good
    morning: buenos días|buenos dias, please: por favor, tree: árbol|arbol, flower: flor, love: amor,
    king: rey, city: ciudad, cheese: queso, bird: pájaro|pajaro|ave"""),
    "German": pairs("""
    dog: Hund, cat: Katze, house: Haus, water: Wasser, bread: Brot, book: Buch, friend: Freund|Freundin,
    red: rot, milk: Milch, sun: Sonne, moon: Mond, horse: Pferd, apple: Apfel, day: Tag, night: Nacht,
    school: Schule, fish: Fisch, hand: Hand, thank you: danke, goodbye: auf Wiedersehen, good morning: guten
    Morgen, please: bitte, tree: Baum, flower: Blume, love: Liebe, king: König|Koenig, city: Stadt,
    cheese: Käse|Kaese, bird: Vogel"""),
    "Italian": pairs("""
    dog: cane, cat: gatto, house: casa, water: acqua, bread: pane, book: libro, friend: amico|amica,
    red: rosso, milk: latte, sun: sole, moon: luna, horse: cavallo, apple: mela, day: giorno, night: notte,
    school: scuola, fish: pesce, hand: mano, thank you: grazie, goodbye: arrivederci|addio, good
    morning: buongiorno|buon giorno, please: per favore, tree: albero, flower: fiore, love: amore, king: re,
    city: città|citta, cheese: formaggio, bird: uccello"""),
}

# Kind of thing -> things of that kind.
KINDS = {
    "fruit": FRUITS,
    "vegetable": VEGETABLES,
    "instrument": INSTRUMENTS,
    "bird": words(
        "crow duck eagle falcon hawk ostrich owl parrot peacock pelican penguin pigeon robin sparrow swan"
    ),
    "insect": words("ant bee beetle butterfly dragonfly grasshopper mosquito moth wasp"),
    "mammal": words(
        "bear camel cow deer dolphin elephant fox giraffe goat horse lion rabbit tiger whale wolf zebra"
    ),
    "tool": words("chisel drill hammer pliers rake saw screwdriver shovel wrench"),
    "vehicle": words("""
    ambulance bicycle boat bus car helicopter motorcycle plane ship taxi tractor train truck van"""),
    "flower": words("carnation daffodil daisy lily orchid rose sunflower tulip violet"),
    "tree": words("birch cedar maple oak pine willow"),
    "reptile": words("crocodile lizard snake tortoise turtle"),
    "sport": SPORTS,
    "metal": words("aluminum copper gold iron lead nickel silver steel tin zinc"),
    "color": words("black blue brown crimson gray green pink purple red turquoise white yellow"),
    "piece of clothing": words("""
    blouse coat dress glove hat jacket scarf shirt shoe skirt sock sweater vest"""),
    "piece of furniture": words("armchair bookshelf chair couch cupboard desk dresser sofa table wardrobe"),
}

UNCOUNTED_KINDS = ("sport", "metal", "color")  # their words take no article

AUTHORS = pairs("""
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
