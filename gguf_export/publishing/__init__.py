"""From a folder on the disk to a repository on the Hugging Face Hub, and nothing that its SHA256SUMS does not name.

    release_files   which files are sent, and in which order
    repository      the Hub's client: what it is asked for, how long, how often
    failures        what the client raises, as errors of this project; which failures may pass
    xet_progress    how far the fast transfer is
    upload          the whole: look, hold against SHA256SUMS, send what is lacking, look again

The Hub's client is imported in this room alone, and this room by nothing that does not upload.
"""
