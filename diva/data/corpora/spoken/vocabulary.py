"""The words that `diva.data.corpora.spoken.sentences` puts into its templates: plain data."""


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in " ".join(text.split()).split(",") if phrase.strip())


def pairs(text: str) -> dict[str, str]:
    """'key: value, key: value' -> dict. Several correct values are separated by |."""
    return dict(pair.split(": ", 1) for pair in phrases(text))  # type: ignore[misc]


ANIMALS = words("""
    ant badger bat bear beaver bee beetle buffalo butterfly camel cat chicken cow crab crocodile crow deer dog
    dolphin donkey dragonfly duck eagle elephant falcon fox frog giraffe goat gorilla hamster hawk hedgehog
    hippo horse kangaroo kitten koala leopard lion lizard llama lobster monkey mosquito moth octopus ostrich
    otter owl panda parrot peacock pelican penguin pig pigeon pony puppy rabbit raccoon rat raven rhino robin
    rooster seal shark skunk snail snake sparrow spider squid squirrel swan tiger toad tortoise turkey turtle
    walrus wasp weasel whale wolf worm zebra""")

CITIES = phrases("""
    Amsterdam, Athens, Atlanta, Baghdad, Bangkok, Barcelona, Beijing, Berlin, Boston, Brussels, Budapest,
    Cairo, Chicago, Copenhagen, Dallas, Delhi, Denver, Detroit, Dubai, Dublin, Edinburgh, Florence, Geneva,
    Glasgow, Havana, Helsinki, Hong Kong, Houston, Istanbul, Jerusalem, Lisbon, Liverpool, London, Los
    Angeles, Madrid, Manchester, Melbourne, Mexico City, Miami, Milan, Montreal, Moscow, Mumbai, Munich,
    Nairobi, Naples, New York, Osaka, Oslo, Oxford, Paris, Philadelphia, Phoenix, Prague, Rome, San Francisco,
    Seattle, Seoul, Shanghai, Singapore, Stockholm, Sydney, Tokyo, Toronto, Vancouver, Venice, Vienna, Warsaw,
    Washington, Zurich""")

LANGUAGES = words("""
    Arabic Chinese Danish Dutch English Finnish French German Greek Hindi Italian Japanese Korean Latin
    Norwegian Polish Portuguese Russian Spanish Swedish Turkish Vietnamese""")

FRUITS = words("""
    apple apricot banana cherry coconut grape grapefruit kiwi lemon lime mango melon orange papaya peach pear
    pineapple plum raspberry strawberry blueberry watermelon""")

VEGETABLES = words("""beetroot cabbage carrot cauliflower leek lettuce onion parsnip potato radish turnip""")

DISHES = phrases("""
    apple pie, banana bread, bean soup, beef stew, biscuits, bread, brownies, cheesecake, chicken curry,
    chicken soup, chocolate cake, coleslaw, dumplings, fish tacos, fried rice, fruit salad, garlic bread,
    gravy, guacamole, hamburgers, ice cream, lamb chops, lasagna, lemonade, macaroni, mashed potatoes,
    meatballs, muffins, mushroom soup, noodles, omelettes, onion soup, pancakes, pasta, pizza, popcorn, pork
    ribs, porridge, potato salad, pudding, pumpkin pie, ravioli, risotto, roast beef, roast turkey, salmon,
    sandwiches, scrambled eggs, spaghetti, sushi, toast, tomato soup, vegetable soup, waffles""")

GROCERIES = phrases("""
    almonds, bacon, bananas, beans, bread, butter, candles, carrots, cereal, cheese, chicken, chocolate,
    coffee, cookies, cream, cucumbers, eggs, fish, flour, garlic, grapes, ham, honey, jam, juice, ketchup,
    lemons, lettuce, matches, milk, mushrooms, mustard, napkins, nuts, oats, olive oil, onions, oranges,
    pasta, peanut butter, pears, pepper, potatoes, rice, salt, sausages, shampoo, soap, spinach, sugar, tea,
    tissues, tomatoes, toothpaste, vinegar, yogurt""")

DRINKS = phrases("""
    apple juice, beer, black coffee, cocoa, cold water, green tea, hot chocolate, lemonade, milk, orange
    juice, soda, sparkling water, tea, tomato juice, wine""")

JOBS = phrases("""
    accountant, actor, architect, artist, astronaut, baker, banker, barber, biologist, builder, butcher,
    carpenter, chef, chemist, clown, coach, dancer, dentist, designer, detective, diplomat, doctor, driver,
    economist, editor, electrician, engineer, farmer, firefighter, florist, gardener, historian, janitor,
    jeweler, journalist, judge, lawyer, librarian, mechanic, midwife, miner, musician, nurse, painter,
    pharmacist, photographer, physicist, pilot, plumber, poet, police officer, politician, professor,
    programmer, psychologist, reporter, sailor, scientist, sculptor, secretary, singer, soldier, surgeon,
    tailor, teacher, translator, vet, waiter, writer""")

OBJECTS = words("""
    backpack ball basket battery bicycle blanket boat bottle box bracelet bridge brush bucket button
    calculator calendar camera candle carpet chair clock coat coin compass computer cup curtain desk
    dictionary door drum engine envelope fan fence flag flute fork fridge glove guitar hammer hat helicopter
    helmet iron jacket jar kettle key keyboard kite knife ladder lamp laptop lock magnet map microphone
    microscope microwave mirror necklace needle newspaper notebook oven paintbrush pan pen pencil phone piano
    pillow plate printer purse radio ring robot rope ruler saw scarf screwdriver shoe shovel sofa spoon
    stapler stove suitcase sword table telescope tent thermometer ticket toothbrush towel tractor trumpet
    umbrella vacuum vase violin wallet watch wheel whistle window wrench""")

INGREDIENTS = phrases("""
    bacon, beans, beef, butter, cabbage, carrots, cheese, chicken, coconut milk, corn, eggs, fish, garlic,
    ginger, ham, honey, lamb, leeks, lemons, lentils, mushrooms, noodles, olives, onions, oranges, peas,
    peppers, pork, potatoes, rice, salmon, sausages, shrimp, spinach, tofu, tomatoes, tuna, turkey, yogurt,
    zucchini""")

BELONGINGS = phrases("""
    bag, bicycle, camera, car, coat, computer, glasses, gloves, hat, headphones, jacket, keys, laptop, library
    book, luggage, notebook, passport, pencil, phone, purse, ring, scarf, shoes, suitcase, ticket, umbrella,
    wallet, watch""")

APPLIANCES = phrases("""
    air conditioner, bathroom fan, bedroom light, boiler, ceiling fan, coffee machine, computer, dishwasher,
    doorbell, dryer, fireplace, freezer, garage light, garden lights, hallway lamp, heater, heating, kettle,
    kitchen light, microwave, oven, porch light, printer, radio, refrigerator, speaker, sprinkler, stove,
    television, toaster, vacuum cleaner, washing machine""")
INSTRUMENTS = words(
    "accordion banjo cello clarinet drum flute guitar harp piano saxophone trombone trumpet violin"
)

SPORTS = words("""
    archery badminton baseball basketball bowling boxing cricket cycling fencing football golf gymnastics
    hockey judo rowing rugby running sailing skating skiing soccer surfing swimming tennis volleyball
    wrestling yoga""")

FEELINGS = words("""
    afraid alone angry anxious ashamed awful bored brave calm cheerful clumsy confident confused curious
    disappointed dizzy embarrassed energetic excited exhausted fantastic free frustrated furious generous
    gloomy grateful great guilty happy helpless homesick hopeful hungry impatient inspired jealous joyful lazy
    lonely lost lucky miserable nervous optimistic overwhelmed peaceful playful proud puzzled relaxed relieved
    restless sad scared shy sick silly sleepy stressed strong stupid surprised thankful thirsty tired
    uncomfortable weak weird wonderful worried""")

BODY_PARTS = words("""
    ankle arm back chest ear elbow eye finger foot hand head heel hip jaw knee leg neck nose shoulder stomach
    throat thumb toe tongue tooth wrist""")

PEOPLE = phrases("""
    my aunt, my boss, my brother, my cousin, my daughter, my doctor, my father, my friend, my grandfather, my
    grandmother, my husband, my landlord, my mother, my neighbor, my nephew, my niece, my sister, my son, my
    teacher, my uncle, my wife""")

NAMES = words("""
    Adam Alice Amy Anna Ben Carol Charles Charlotte Daniel David Diana Edward Elizabeth Emily Emma Frank
    George Grace Hannah Harry Helen Henry Jack James Jane Jennifer John Julia Karen Kevin Laura Lisa Lucy
    Margaret Mark Martin Mary Michael Nancy Oliver Patrick Paul Peter Rachel Richard Robert Rose Sam Sarah
    Simon Sophie Steven Susan Thomas Victoria William""")

SUBJECTS = words("""
    algebra architecture art astronomy biology business chemistry computers dance design drama economics
    engineering fashion geography geology geometry grammar history law literature logic mathematics medicine
    music philosophy photography physics poetry politics programming psychology religion robotics sociology
    statistics""")

TOPICS = phrases("""
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

ADJECTIVES = words("""
    brief cheerful clever dark exciting funny gentle happy long magical modern mysterious rhyming romantic sad
    scary serious short silly simple strange sweet""")

OCCASIONS = phrases("""
    a beach party, a birthday party, a business dinner, a camping trip, a concert, a costume party, a dance
    class, a date, a family dinner, a football game, a funeral, a garden party, a graduation, a hike, a
    holiday party, a job interview, a museum visit, a picnic, a ski trip, a wedding, a yoga class, church,
    school, the airport, the ballet, the gym, the office, the opera, the park, the theater, the zoo""")

CHORES = phrases("""
    bake the cake, brush the dog, buy flowers, buy some milk, call the bank, call the dentist, change the
    sheets, charge my phone, check my email, clean the bathroom, clean the kitchen, collect the parcel, cook
    dinner, cut the grass, do my homework, do the laundry, drink more water, empty the trash, feed the cat,
    feed the fish, finish the report, fix the fence, iron my shirt, lock the door, mail the letter, make the
    bed, order a taxi, pack my bags, paint the wall, pay the rent, plant some seeds, practice the piano, print
    the tickets, read a book, renew my passport, return the books, send the invoice, stretch my legs, study
    for the exam, sweep the floor, take a break, take my medicine, take out the trash, thank the driver, visit
    the doctor, walk the dog, wash the car, wash the dishes, water the plants, write the essay""")

SKILLS = phrases("""
    bake bread, boil an egg, build a chair, catch a fish, change a tire, clean an oven, climb a tree, draw a
    face, drive a car, fix a leak, fold a shirt, fry an egg, grow tomatoes, hang a picture, hold a baby, jump
    a rope, juggle, knit a sweater, light a fire, make cheese, make soap, milk a cow, open a bank account,
    paint a room, peel a mango, plant a tree, play chess, play poker, polish shoes, remove a stain, repair a
    watch, ride a horse, save money, sew a button, sharpen a knife, ski, start a business, stop snoring, swim,
    take good photos, tell a joke, tie a tie, train a puppy, type faster, wash a sweater, whistle, win at
    cards, wrap a present, write a letter""")

PLACES = phrases("""
    airport, bakery, bank, barber, beach, bookstore, bus stop, cafe, castle, church, cinema, dentist,
    drugstore, factory, fire station, gas station, gym, harbor, hospital, hotel, lake, library, market,
    museum, palace, park, pharmacy, playground, police station, post office, restaurant, school, shopping
    mall, stadium, supermarket, swimming pool, temple, theater, toy store, train station, university, zoo""")

INVENTIONS = phrases("""
    airplane, bicycle, camera, clock, compass, computer, elevator, engine, helicopter, internet, lamp, light
    bulb, microscope, microwave, paper clip, piano, printing press, radio, refrigerator, sewing machine, steam
    engine, submarine, telephone, telescope, television, thermometer, toothbrush, typewriter, umbrella,
    zipper""")

MUSIC = phrases("""
    ballads, blues, classical music, country music, dance music, disco, drum music, folk songs, gospel, guitar
    music, happy songs, hip hop, jazz, love songs, lullabies, old hits, opera, party music, piano music, pop
    music, punk, quiet music, reggae, rock music, sad songs, salsa, soul, techno, violin music""")

ACTIVITIES = phrases("""
    baking, bird watching, camping, chess, cleaning, climbing, cooking, dancing, dieting, drawing, driving,
    fishing, flying, gardening, hiking, hunting, jogging, juggling, knitting, meditation, painting, parenting,
    pottery, public speaking, reading, sewing, shopping, singing, skiing, sleeping, studying, swimming,
    teaching, traveling, walking, weight lifting, working from home, writing""")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
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
