-- Put in place of their names when the script is put together (see scripts.py): whatever functions
-- share costs a little at each call.

-- What an answer begins with.
local OK = 0
local STALE = 1
local FULL = 2
local REGISTER = 3
local AGAIN = 4
local USED_UP = 6

-- The head of a lane: version, next position, last time, due, ends, seal (0: open), registration,
-- registered, server; and behind that the generation. Nothing hidden ends before `due`, and nothing
-- expires before `ends`.
local HEAD = '>I8I8I8I8I8I8I8I1c8'

-- The state of a message: posted, expires, ttl, count, flags: 1 a HOLD follows, 2 attributes (at the
-- end), 4 a dedup key. The HOLD: hidden until, claimed at, for how long, by which claim (a delay has
-- NOBODY). Behind these come the client and the dedup key, each with two bytes for its length.
local STATE = '>I8I8I4I4I1'
local TIMES = '>I8I8I4' -- how it begins
local HOLD = '>I8I8I4c32'
local NOBODY = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'

-- Each body is stored behind so many bytes of a checksum.
local CHECKSUM = 4

-- Scores: a band, and 13 digits of a position or a time. They are sent as text, which costs less
-- than numbers that have to be made text first.
local FREE = '' -- a position is its own score
local HIDDEN = '10'
local EXPIRY = '20'
local HELD = '30'
local DELAYED = '40'
local FIRST = '0000000000000'
local LAST = '9999999999999'
local BAND = 10 ^ 14

local FAR = 2 ^ 52 -- later than any time
local POSITIONS = 2 ^ 43
local LEAP = 2 ^ 20 -- positions passed over when another server goes on with the lane,
local LEAP_MS = 16 -- and so many more for each ms since the lane's last change,
local LEAP_AT_MOST_MS = 86400000 -- up to so many
local STEP = 500 -- rows that an operation looks at, or tidies up on its way
local BYTES = 2 ^ 22 -- of bodies that one answer has before the rest has to be asked for
local IDLE_MS = 10000 -- that long a lane stays in the list of busy ones when it is empty
local SPENT = 100 -- messages claimed too often that a claim reports
