-- Lanes: their heads, and reading and writing what is in them.

-- A position or a time as text, in the order of numbers.
local function digits(number)
    return format('%013d', number)
end

-- Whether a first write was done; false when there is no memory for it.
local function room(reply)
    if type(reply) ~= 'table' or not reply.err then return true end
    if string.find(reply.err, 'OOM', 1, true) then return false end
    error(reply.err, 0)
end

local function open_lane(number)
    local lane = lanes[number]
    if lane ~= nil then return lane end
    local head = call('HGET', KEYS[2 * number - 1], 'l')
    lane = false
    if head then
        lane = { hash = KEYS[2 * number - 1], zset = KEYS[2 * number], expired = 0 }
        local known, at
        lane.version, lane.next, lane.last, lane.due, lane.ends, lane.seal, lane.registration,
            known, lane.server, at = unpack_(HEAD, head)
        lane.registered = known == 1
        lane.generation = sub(head, at)
        lane.now = max(now, lane.last)
    end
    lanes[number] = lane
    return lane
end

local function head_of(lane)
    return pack(HEAD, lane.version, lane.next, lane.last, lane.due, lane.ends, lane.seal,
        lane.registration, lane.registered and 1 or 0, lane.server) .. lane.generation
end

-- Where there is no memory left, what frees some comes first.
local function write_head(lane)
    local head = head_of(lane)
    if not room(redis.pcall('HSET', lane.hash, 'l', head)) then
        call('HDEL', lane.hash, 'l')
        call('HSET', lane.hash, 'l', head)
    end
end

-- Another server goes on with the lane. The last positions that the one before gave out may have been
-- lost with it, after somebody had seen them. Of two that go on from the same state, as the second
-- never had what the first did, the later one leaps further: by more than the first can have given.
local function go_on(lane)
    if lane.server ~= SERVER then
        lane.server = SERVER
        lane.next = lane.next + LEAP + LEAP_MS * min(lane.now - lane.last, LEAP_AT_MOST_MS)
    end
end

local function changed(lane)
    go_on(lane)
    lane.dirty, lane.last = true, lane.now
end

-- A new lane, empty and sealed; nil when there is no room.
local function create(number, generation, version, fresh)
    local lane = {
        hash = KEYS[2 * number - 1], zset = KEYS[2 * number], expired = 0, generation = generation,
        version = version, next = 1, last = now, due = FAR, ends = FAR, seal = fresh,
        registration = fresh, registered = false, server = SERVER, now = now, dirty = true,
    }
    if room(redis.pcall('HSET', lane.hash, 'l', head_of(lane))) then
        call('ZADD', lane.zset, -1, '.')
        lanes[number] = lane
        return lane
    end
    return nil
end

local function each(command, key, list, size)
    local chunk = 1000 * size
    for first = 1, #list, chunk do
        call(command, key, unpack(list, first, min(first + chunk - 1, #list)))
    end
end

local function read(lane, prefix, places)
    if #places == 0 then return {} end
    local fields, rows = {}, {}
    for first = 1, #places, 1000 do
        local last = min(first + 999, #places)
        if prefix == '' then
            fields = places
        else
            for i = first, last do fields[i] = prefix .. places[i] end
        end
        local got = call('HMGET', lane.hash, unpack(fields, first, last))
        for i = 1, #got do rows[first + i - 1] = got[i] end
    end
    return rows
end

local function flush(lane)
    local fields, scores = lane.fields, lane.scores
    if fields then
        lane.fields, lane.scores, lane.keys, lane.ends_of, lane.times_of = nil, nil, nil, nil, nil
        each('HSET', lane.hash, fields, 2)
        each('ZADD', lane.zset, scores, 2)
    end
end

-- The lane for an operation that is meant for this generation (and version), or nil.
local function current(number, generation, version)
    local lane = open_lane(number)
    if not lane or lane.seal > 0 or lane.generation ~= generation
        or (version and lane.version ~= version) then
        return nil
    end
    return lane
end

-- Registration: a lane that may hold messages is in the list of busy ones, which is kept elsewhere.
-- It was put there under a number that is not used again, before its first message; see busy.py.
local function registered(lane, number)
    if lane.registered then return true end
    if number ~= lane.registration then return false end
    lane.registered = true
    changed(lane)
    return true
end

local function next_position(lane)
    go_on(lane)
    local position = lane.next
    lane.next = position + 1
    return position, digits(position)
end
