-- Operations on records, a batch at a time. All of them have two keys:
--
-- A hash:  last             how far the clock had come when something was seen to have ended
--          d<id>            a record: its version, creation and end (0: none), the parent and the
--                           unique name, each with its length (of the name: plus 1, 0: none), doc
--          u<group><name>   the key of the record with this unique name
-- A zset, all scores 0, for ranges by text:
--          r<id>                            all records
--          p<group><parent>^<key>           by parent, if they have one
--          e<kind>^<end><key>^<project>     by end, if they have one
--          x<group><end><key>               likewise within a project, to count those that ended
--
-- An id is kind ^ project ^ key, a group its beginning up to the second ^. The mark ^ is 0 and 1;
-- a 0 within a name is followed by 255, so order and borders are those of the names themselves. An
-- end has 15 digits.
--
-- KEYS     the two
-- ARGV     1: now in milliseconds, 0 for the server's clock; 3: the operations (MessagePack)
--
-- The answer: an empty one, as of lanes.lua; then one for each operation, which begins with one of
-- these. What reads goes on with where to go on, if it took too long (else nothing), and now.

local OK, FULL, TAKEN = 0, 2, 5

local HASH, ZSET = KEYS[1], KEYS[2]
local STEP = 500 -- records that an operation looks at
local MARK, NEXT_MARK = '\0\1', '\0\2'

local call, pack, unpack_, sub, format = redis.call, struct.pack, struct.unpack, string.sub, string.format

if redis.replicate_commands then redis.replicate_commands() end

local now = tonumber(ARGV[1])
if now == 0 then
    local time = call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local last = tonumber(call('HGET', HASH, 'last') or 0)
now = math.max(now, last)

-- What was seen to have ended has ended for good, whatever clock is asked next.
local function remember()
    if last < now then
        redis.pcall('HSET', HASH, 'last', format('%d', now)) -- in vain if there is no memory left
        last = now
    end
end

local function parse(blob)
    local record = {}
    local length, at
    record.version, record.created, record.ends, length, at = unpack_('>I8I8I8I2', blob)
    record.parent = sub(blob, at, at + length - 1)
    at = at + length
    length, at = unpack_('>I2', blob, at)
    if length > 0 then record.name = sub(blob, at, at + length - 2) end
    record.doc = sub(blob, at + math.max(length - 1, 0))
    return record
end

local function blob_of(record)
    return pack('>I8I8I8I2', record.version, record.created, record.ends, #record.parent)
        .. record.parent .. pack('>I2', record.name and #record.name + 1 or 0)
        .. (record.name or '') .. record.doc
end

local function ended(blob)
    local ends = unpack_('>I8', blob, 17)
    if ends == 0 or ends > now then return false end
    remember()
    return true
end

local function read(id)
    return call('HGET', HASH, 'd' .. id)
end

local function split(group)
    local at = string.find(group, MARK, 1, true)
    return sub(group, 1, at - 1), sub(group, at + 2, -3)
end

local function members(group, key, record)
    local found = { 'r' .. group .. key }
    if record.parent ~= '' then
        found[#found + 1] = 'p' .. group .. record.parent .. MARK .. key
    end
    if record.ends > 0 then
        local kind, project = split(group)
        local ends = format('%015d', record.ends)
        found[#found + 1] = 'e' .. kind .. MARK .. ends .. key .. MARK .. project
        found[#found + 1] = 'x' .. group .. ends .. key
    end
    return found
end

local function store(group, key, record)
    call('HSET', HASH, 'd' .. group .. key, blob_of(record))
    if record.name then call('HSET', HASH, 'u' .. group .. record.name, key) end
    local scored = {}
    for _, member in ipairs(members(group, key, record)) do
        scored[#scored + 1] = 0
        scored[#scored + 1] = member
    end
    call('ZADD', ZSET, unpack(scored))
end

local function lose_name(group, name)
    local key = call('HGET', HASH, 'u' .. group .. name)
    if not key then return end
    call('HDEL', HASH, 'u' .. group .. name)
    local id = group .. key
    local record = parse(read(id))
    record.name = nil
    call('HSET', HASH, 'd' .. id, blob_of(record))
end

-- Who has the name; an ended one loses it.
local function owner(group, name)
    local key = name and call('HGET', HASH, 'u' .. group .. name)
    if key and ended(read(group .. key)) then
        lose_name(group, name)
        return nil
    end
    return key or nil
end

local function remove(group, key)
    local blob = read(group .. key)
    if not blob then return nil end
    local record = parse(blob)
    call('ZREM', ZSET, unpack(members(group, key, record)))
    call('HDEL', HASH, 'd' .. group .. key)
    if record.name then call('HDEL', HASH, 'u' .. group .. record.name) end
    return blob
end

-- Whether there is memory for something new. Asked before anything is written.
local function full()
    local reply = redis.pcall('HSETNX', HASH, 'last', '0')
    if type(reply) ~= 'table' or not reply.err then return false end
    if string.find(reply.err, 'OOM', 1, true) then return true end
    error(reply.err, 0)
end

-- Up to `limit` rows from one member (exclusive) to another (exclusive), those that ended only if
-- asked for; `id_of` makes an id of a member. Where to go on comes first, if that took too long.
local function range(from, to, limit, with_ended, id_of)
    local answer, budget = { OK, '', now }, STEP
    local got = 0
    while got < limit do
        local want = math.min(limit - got, 200)
        local found = call('ZRANGEBYLEX', ZSET, '(' .. from, '(' .. to, 'LIMIT', 0, want)
        local fields = {}
        for i, member in ipairs(found) do fields[i] = 'd' .. id_of(member) end
        if #found > 0 then
            for i, blob in ipairs(call('HMGET', HASH, unpack(fields))) do
                if with_ended or not ended(blob) then
                    got = got + 1
                    answer[#answer + 1] = sub(fields[i], 2)
                    answer[#answer + 1] = blob
                end
            end
        end
        if #found < want then break end
        from = found[#found]
        budget = budget - #found
        if budget <= 0 and got < limit then
            answer[2] = from
            break
        end
    end
    return answer
end

local operations = {}

function operations.insert(group, key, name, parent, version, doc, ttl)
    if full() then return { FULL } end
    local taken = owner(group, name)
    if taken or read(group .. key) then return { OK, 0 } end
    store(group, key, {
        version = version, created = now, ends = ttl and now + ttl * 1000 or 0, parent = parent,
        name = name or nil, doc = doc,
    })
    return { OK, 1 }
end

function operations.update(group, key, name, version, doc, ttl)
    local taken = owner(group, name)
    if taken and taken ~= key then return { TAKEN } end
    local blob = read(group .. key)
    if not blob or ended(blob) then return { OK, 0 } end
    local record = parse(blob)
    if record.version ~= version - 1 then return { OK, 0 } end
    remove(group, key)
    record.version, record.doc, record.name = version, doc, name or nil
    if ttl then record.ends = now + ttl * 1000 end
    store(group, key, record)
    return { OK, 1 }
end

function operations.get(group, key, with_ended)
    local blob = read(group .. key)
    if not blob or (ended(blob) and not with_ended) then return { OK, '', now } end
    return { OK, '', now, group .. key, blob }
end

function operations.find(group, name)
    local key = call('HGET', HASH, 'u' .. group .. name)
    local blob = key and read(group .. key)
    if not blob or ended(blob) then return { OK, '', now } end
    return { OK, '', now, group .. key, blob }
end

-- With a document only if the record has that.
function operations.delete(group, key, doc)
    local there = doc and read(group .. key)
    if there and parse(there).doc ~= doc then return { OK, '', now } end
    local blob = remove(group, key)
    if not blob then return { OK, '', now } end
    return { OK, '', now, group .. key, blob }
end

-- `prefix`: what all members have in common, with a mark at its end; `group` stands in its place.
function operations.page(prefix, group, from, limit, with_ended)
    return range(from, sub(prefix, 1, -3) .. NEXT_MARK, limit, with_ended, function(member)
        return group .. sub(member, #prefix + 1)
    end)
end

function operations.count(group)
    local past = call('ZLEXCOUNT', ZSET, '[x' .. group, '(x' .. group .. format('%015d', now + 1))
    if past > 0 then remember() end
    local all = call('ZLEXCOUNT', ZSET, '[r' .. group, '(r' .. sub(group, 1, -3) .. NEXT_MARK)
    return { OK, all - past }
end

function operations.ended(prefix, from, limit)
    local kind = sub(prefix, 2)
    local answer = range(from, prefix .. format('%015d', now + 1), limit, true, function(member)
        local key = sub(member, #prefix + 16)
        local at = string.find(key, MARK, 1, true)
        return kind .. sub(key, at + 2) .. MARK .. sub(key, 1, at - 1)
    end)
    if #answer > 3 then remember() end
    return answer
end

function operations.dump(from, limit)
    return range(from, 's', limit, true, function(member) return sub(member, 2) end)
end

function operations.load(records)
    if full() then return { FULL } end
    for _, one in ipairs(records) do
        local group, key, name, parent, version, doc, created, ends = unpack(one, 1, 8)
        remove(group, key)
        if name then
            if ends == 0 or ends > now then
                lose_name(group, name)
            elseif call('HEXISTS', HASH, 'u' .. group .. name) == 1 then
                name = nil
            end
        end
        store(group, key, {
            version = version, created = created, ends = ends, parent = parent, name = name or nil,
            doc = doc,
        })
    end
    return { OK }
end

local batch = cmsgpack.unpack(ARGV[3])
local answers = { {} }
for i = 1, #batch, 2 do
    local one = batch[i + 1]
    answers[#answers + 1] = operations[one[1]](unpack(one, 2, 10))
end
return answers
