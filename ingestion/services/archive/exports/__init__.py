"""Takes mail out of the archive: what is chosen, as one file of a format, at once or as a job.

selection   which messages          items      what is told of one, and where it is filed
formats     mbox, Maildir, .eml     mbox, tars, zips, names     their bytes: pure
stream      at once                 jobs       in the background, resumable; links, to its file
"""
