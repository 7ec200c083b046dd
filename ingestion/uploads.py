"""No page takes files, so none is read into memory or written to disk for anybody."""

from typing import NoReturn

from django.core.exceptions import RequestDataTooBig
from django.core.files.uploadhandler import FileUploadHandler


class Refused(FileUploadHandler):
    """Refuses a form at its first file.

    A view that takes one sets `request.upload_handlers` before the form is read, as Django's
    documentation on upload handlers shows ("Modifying upload handlers on the fly").
    """

    def new_file(self, *_: object, **__: object) -> NoReturn:
        raise RequestDataTooBig("No file is expected here.")

    def receive_data_chunk(self, *_: object) -> NoReturn:
        raise RequestDataTooBig("No file is expected here.")

    def file_complete(self, file_size: int) -> None:
        """Complete none."""
