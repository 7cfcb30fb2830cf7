/* How many pixels a JPEG's header names: what a decoder takes memory for, before it sees whether they are there.

   To ask libjpeg-turbo takes 1.9 microseconds, a tenth of decoding 32 x 32 pixels. Here only what every encoder writes is
   understood, segments one after another; anything else is left to the library. ITU-T T.81, annex B. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

static long long pixels_named(const uint8_t *data, Py_ssize_t size) {
    if (size < 2 || data[0] != 0xFF || data[1] != 0xD8) return -1;
    for (Py_ssize_t at = 2; at + 9 <= size;) {
        uint8_t marker = data[at + 1];
        if (data[at] != 0xFF || marker < 0xC0 || (marker >= 0xD0 && marker <= 0xDA) || marker == 0xFF) return -1;
        if (marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) {
            long long height = data[at + 5] << 8 | data[at + 6], width = data[at + 7] << 8 | data[at + 8];
            return height && width ? height * width : -1;
        }
        int length = data[at + 2] << 8 | data[at + 3];
        if (length < 2) return -1;
        at += 2 + length;
    }
    return -1;
}

static PyObject *num_pixels(PyObject *module, PyObject *given) {
    (void)module;
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(given, &data, &size) < 0) return NULL;
    return PyLong_FromLongLong(pixels_named((const uint8_t *)data, size));
}

static PyMethodDef methods[] = {
    {"num_pixels", num_pixels, METH_O, "The pixels that the header of a JPEG, as bytes, names; -1 where the library has to say it."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_jpeg", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModule_Create(&definition); }
