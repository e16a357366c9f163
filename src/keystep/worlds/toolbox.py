"""A toolbox for text, pictures, sound and film: forty typed tools, and ways in which people ask for each.

Names and types are those of TaskBench's multimedia domain (Shen et al. 2023), so that its tool graph can be rebuilt; the phrases are of
our own making. A phrase has one `{}` for every input, in the order of the types. The last two of each tool are held out: a planner that
was trained on the others meets them for the first time.
"""

from __future__ import annotations

HELD_OUT = 2

# name: (input types, output types, phrases)
TOOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "Image Downloader": (("url",), ("image",), (
        "download the picture at {}", "fetch the image from {}", "save the photo that {} links to", "get me the picture behind {}",
        "pull the image off {}", "grab the photo found at {}")),
    "Video Downloader": (("url",), ("video",), (
        "download the video at {}", "fetch the clip from {}", "save the film that {} links to", "get me the footage behind {}",
        "pull the video off {}", "grab the clip found at {}")),
    "Audio Downloader": (("url",), ("audio",), (
        "download the sound file at {}", "fetch the recording from {}", "save the audio that {} links to", "get me the track behind {}",
        "pull the audio off {}", "grab the recording found at {}")),
    "Text Downloader": (("url",), ("text",), (
        "download the text at {}", "fetch the words of the page {}", "save the writing that {} links to", "get me the article behind {}",
        "pull the text off {}", "grab the article found at {}")),
    "Text Search": (("text",), ("text",), (
        "search the web for {}", "look up {} on the internet", "find pages about {}", "see what is written online on {}",
        "look on the web for pages on {}", "search for writing about {}")),
    "Image Search": (("text",), ("Image",), (
        "find a picture of {}", "search the web for photos showing {}", "look up images of {}", "get a photo from the internet for {}",
        "search for a picture showing {}", "look for photos of {} online")),
    "Image Search (by Image)": (("image",), ("image",), (
        "find pictures that look like {}", "search for images similar to {}", "look up photos resembling {}",
        "find out what other images match {}", "search for photos that look like {}", "find an image resembling {}")),
    "URL Extractor": (("text",), ("url",), (
        "take the link out of {}", "extract the web address from {}", "find the url within {}", "pick out the address mentioned in {}",
        "pull the link out of {}", "find the web address in {}")),
    "Video Search": (("text",), ("video",), (
        "find a video about {}", "search the web for clips showing {}", "look up films on {}", "get a clip from the internet for {}",
        "search for a video showing {}", "look for clips about {} online")),
    "Text-to-Image": (("text",), ("image",), (
        "draw a picture of {}", "generate an image from {}", "paint what {} describes", "create an illustration for {}",
        "make an image of what {} describes", "draw an illustration from {}")),
    "Text-to-Video": (("text",), ("video",), (
        "make a film of {}", "generate a video from {}", "animate what {} describes", "create a clip for {}",
        "make a video of what {} describes", "produce a clip from {}")),
    "Text-to-Audio": (("text",), ("audio",), (
        "read {} aloud", "generate speech from {}", "turn {} into a recording", "have a voice speak {}",
        "make a recording of a voice reading {}", "speak {} aloud")),
    "Image-to-Text": (("image",), ("text",), (
        "read the words in {}", "recognise the writing on {}", "extract the text printed in {}", "tell me what letters {} shows",
        "read the writing on {}", "get the words printed in {}")),
    "Audio-to-Text": (("audio",), ("text",), (
        "transcribe {}", "write down what is said in {}", "turn the speech of {} into text", "note the words spoken in {}",
        "write down the speech of {}", "get a transcript of the talk in {}")),
    "Video-to-Text": (("video",), ("text",), (
        "transcribe the film {}", "write down what people say in the video {}", "turn the talk of the clip {} into text",
        "note the words spoken in the footage {}", "write down the talk of the film {}", "get a transcript of the video {}")),
    "Audio Noise Reduction": (("audio",), ("audio",), (
        "remove the noise from {}", "clean up the hiss in {}", "reduce the background sounds of {}", "take the hum out of {}",
        "get rid of the background noise in {}", "clean {} of hum and hiss")),
    "Audio Effects": (("audio", "text"), ("audio",), (
        "change the sound of {} as {} says", "apply effects to {} according to {}", "put the effect {1} on {0}",
        "give {} the sound effects asked for by {}", "alter the sound of {} according to {}", "apply to {} the effect {}")),
    "Audio Splicer": (("audio", "audio"), ("audio",), (
        "join {} and {} into one recording", "put {} before {} in one sound file", "splice {} with {}", "merge the sounds {} and {}",
        "join the sounds of {} with {}", "put {} and {} together as one recording")),
    "Voice Changer": (("audio", "text"), ("audio",), (
        "change the voice in {} as {} says", "make the speaker of {} sound according to {}", "alter the voice of {} following {}",
        "modify who seems to speak in {} as told by {}", "alter the speaker of {} as {} says", "make the voice of {} follow {}")),
    "Text Summarizer": (("text",), ("text",), (
        "summarise {}", "give me the main points of {}", "shorten {} to its gist", "sum up {}",
        "shorten {} to the main points", "give me the gist of {}")),
    "Text Translator": (("text",), ("text",), (
        "translate {} to English", "put {} into English", "give me the English version of {}", "say in English what {} means",
        "give {} to me in English", "make an English version of {}")),
    "Text Sentiment Analysis": (("text",), ("text",), (
        "tell whether {} is positive or negative", "find the mood of {}", "judge the feeling behind {}", "analyse the sentiment of {}",
        "judge whether the mood of {} is positive", "tell me the feeling of {}")),
    "Text Grammar Checker": (("text",), ("text",), (
        "check the grammar of {}", "correct the mistakes in {}", "find grammatical errors in {}", "proofread {}",
        "correct the grammar of {}", "check {} for mistakes")),
    "Text Simplifier": (("text",), ("text",), (
        "put {} in simpler words", "make {} easier to understand", "simplify {}", "rewrite {} so that a child understands it",
        "rewrite {} in simpler words", "make {} easy for a child")),
    "Text Expander": (("text",), ("text",), (
        "make {} longer and more detailed", "expand {}", "add detail to {}", "write {} out at length",
        "write {} out in more detail", "make a longer version of {}")),
    "Keyword Extractor": (("text",), ("text",), (
        "list the keywords of {}", "extract the key phrases from {}", "find the most important terms in {}", "pick the key words of {}",
        "list the important terms of {}", "find the key phrases of {}")),
    "Text Paraphraser": (("text",), ("text",), (
        "say {} in other words", "paraphrase {}", "reword {}", "rephrase {} without changing the meaning",
        "put {} in other words", "reword {} and keep the meaning")),
    "Article Spinner": (("text",), ("text",), (
        "spin {} into a unique article", "rewrite the article {} with synonyms", "make a fresh unique article of {}",
        "produce a new unique version of the article {}", "spin a new article out of {}", "make a unique article with synonyms from {}")),
    "Topic Generator": (("text",), ("text",), (
        "suggest topics related to {}", "give me ideas around {}", "list themes that go with {}", "propose topics for {}",
        "suggest ideas for {}", "list topics around {}")),
    "Audio-to-Image": (("audio",), ("image",), (
        "draw the waveform of {}", "show {} as a spectrogram", "make a picture of the sound {}", "visualise {} as a waveform image",
        "make a waveform picture of {}", "draw a spectrogram of {}")),
    "Image-to-Video": (("image", "image"), ("video",), (
        "make a slideshow of {} and {}", "turn {} and {} into a slideshow video", "build a slide film out of {} and {}",
        "show {} and {} one after the other as a video", "make a slide film of {} and {}", "turn {} and {} into a slideshow")),
    "Video-to-Audio": (("video",), ("audio",), (
        "take the sound track out of {}", "extract the audio of {}", "get the sound of the film {}", "separate the audio track from {}",
        "extract the sound track of {}", "get the audio track out of {}")),
    "Video-to-Image": (("video",), ("image",), (
        "take a still from {}", "extract a frame of {}", "capture one picture out of the film {}", "get a snapshot of the video {}",
        "capture a still of {}", "get one frame out of {}")),
    "Image Stitcher": (("image", "image"), ("image",), (
        "stitch {} and {} into a panorama", "put {} next to {} in one wide picture", "make a collage of {} and {}",
        "join the pictures {} and {} side by side", "stitch a collage of {} and {}", "make a panorama out of {} and {}")),
    "Image Colorizer": (("image",), ("image",), (
        "colour {}", "add colours to the black and white picture {}", "colourise {}", "turn {} from grey to colour",
        "add colour to {}", "give the grey picture {} colours")),
    "Image Style Transfer": (("image", "image"), ("image",), (
        "give {1} the style of {0}", "apply the look of {} to {}", "transfer the style from {} to {}", "paint {1} in the manner of {0}",
        "apply the style of {} to {}", "give {1} the look of {0}")),
    "Video Stabilizer": (("video",), ("video",), (
        "steady the shaky clip {}", "stabilise {}", "remove the shaking from {}", "smooth out the wobble in {}",
        "steady the wobble of {}", "smooth out the shaking in {}")),
    "Video Speed Changer": (("video", "text"), ("video",), (
        "change the speed of {} as {} says", "play {} faster or slower according to {}", "adjust how fast {} runs following {}",
        "speed {} up or slow it down as told by {}", "adjust the speed of {} according to {}", "make {} run as fast as {} says")),
    "Video Synchronization": (("video", "audio"), ("video",), (
        "synchronise {} with the sound {}", "align the timing of {} to {}", "match the voice-over of {} to {}",
        "bring {} in step with the audio {}", "match the timing of {} to {}", "align {} with the sound {}")),
    "Video Voiceover": (("video", "text"), ("video",), (
        "add a voice-over to {} that says {}", "narrate {} with {}", "have a voice speak over {} the words {}",
        "lay spoken words over {} from {}", "narrate {} with a voice that says {}", "add spoken words to {} from {}")),
}  # fmt: skip

_SUBJECTS = ("bees dance", "rain in May", "an old harbour", "the night train", "seven red kites", "a quiet garden", "the long bridge",
             "our first snow", "a lost letter", "green tea", "the open sea", "wild horses")  # fmt: skip

LITERALS = {
    "text": tuple(f"'{subject}'" for subject in _SUBJECTS),
    "url": tuple(f"http://example.com/{page}" for page in ("news", "birds", "a12", "harbour", "tea", "kites")),
    "image": ("example.jpg", "example.png", "photo.jpg", "scan.png"),
    "audio": ("example.wav", "talk.wav", "song.mp3", "note.mp3"),
    "video": ("example.mp4", "trip.mp4", "party.mov", "clip.avi"),
}

OPENINGS = ("Please ", "I want you to ", "Could you ", "I need someone to ", "First ", "")
ASIDES = ("My colleague needs it soon.", "It is for a school project.", "Thank you very much.", "I have tried it myself and failed.",
          "Take the time you need.", "There is no hurry.")  # fmt: skip
