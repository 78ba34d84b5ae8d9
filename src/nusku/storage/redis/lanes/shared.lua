-- Operations on lanes, a batch at a time. The server runs nothing else meanwhile, so what is done
-- here is one step to everybody, and no operation may look at more than a bounded number of rows:
-- one that is not done says AGAIN, or from where to go on, and is sent once more.
--
-- A lane is one queue and has two keys, so that it is moved, dropped and cleared as a whole:
--
-- A hash:    l            the head of the lane, see HEAD in constants.lua
--            <position>   the state of a message: all but its body, see STATE there
--            b<position>  its body, never changed
--            k<dedup>     the position of the message with this key
--            c<claim>     the positions that a claim holds, one behind the other
-- A zset:    <position>   free, by position
--            u<position>  not free, by position
--            e<position>  by when it expires
--            h<position>  held, by when the claim ends
--            d<position>  delayed, by when that ends (or the message, if sooner)
--            .            so that the key is there when the lane is empty (a cluster that moves a
--                         slot can then tell a lane that is elsewhere from an empty one)
--
-- Scores have the band in front, so ZCOUNT counts what is in a part of one band. A message that is
-- held no more, but was not put back yet, is in u and h; times decide what it is. A position has
-- 13 digits, so that members with one score are in order of position too.
--
-- KEYS       two for each lane
-- ARGV       1: now in milliseconds, 0 for the server's clock; 2: which server this is; 3: the
--            operations (MessagePack), for each the numbers of its lanes and what to do
--
-- The answer: what expired, as pairs of a lane's number and how many; then an answer for each
-- operation.

local call, pack, unpack_ = redis.call, struct.pack, struct.unpack
local sub, format, min, max = string.sub, string.format, math.min, math.max

if redis.replicate_commands then redis.replicate_commands() end

local now = tonumber(ARGV[1])
if now == 0 then
    local time = call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local SERVER = ARGV[2]
local lanes, full = {}, false
