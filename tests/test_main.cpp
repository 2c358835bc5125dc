// Boost.Test's implementation and main(), compiled once and linked into every test program.
#define BOOST_TEST_MODULE hearth
#include <boost/test/included/unit_test.hpp>
