-- Removing messages, and putting back those that are hidden no more.

local function note(gone, claim, place)
    local places = gone[claim]
    if not places then
        places = {}
        gone[claim] = places
    end
    places[place] = true
end

-- `gone`: for each claim the places that it holds no more.
local function unclaim(lane, gone)
    local claims, removed, kept = {}, {}, {}
    for claim in pairs(gone) do claims[#claims + 1] = claim end
    if #claims == 0 then return end
    local lists = read(lane, 'c', claims)
    for i, claim in ipairs(claims) do
        local list, places = lists[i], gone[claim]
        if list then
            local left = {}
            for at = 1, #list, 13 do
                local place = sub(list, at, at + 12)
                if not places[place] then left[#left + 1] = place end
            end
            if #left == 0 then
                removed[#removed + 1] = 'c' .. claim
            elseif #left * 13 < #list then
                kept[#kept + 1] = 'c' .. claim
                kept[#kept + 1] = table.concat(left)
            end
        end
    end
    each('HDEL', lane.hash, removed, 1)
    each('HSET', lane.hash, kept, 2)
end

-- Remove messages with all that is kept of them. The first command takes no memory, so that it can
-- be done when there is none left.
local function forget(lane, places, states)
    if #places == 0 then return end
    states = states or read(lane, '', places)
    local members, fields, gone, keyed = {}, {}, {}, {}
    local n, m = 0, 0
    for i, place in ipairs(places) do
        local state = states[i]
        members[n + 1], n = 'e' .. place, n + 1
        fields[m + 1], fields[m + 2], m = place, 'b' .. place, m + 2
        if state then
            local visible, claim = hidden_of(state)
            if visible <= lane.now then members[n + 1], n = place, n + 1 end
            if visible > 0 then
                members[n + 1], members[n + 2], n = 'u' .. place, (claim == NOBODY and 'd' or 'h') .. place, n + 2
                if claim ~= NOBODY then note(gone, claim, place) end
            end
            if flags_of(state) >= 4 then
                keyed[#keyed + 1] = { (dedup_of(state, rest_of(state))), place }
            end
        end
    end
    each('ZREM', lane.zset, members, 1)
    if #keyed > 0 then
        local keys = {}
        for i, one in ipairs(keyed) do keys[i] = one[1] end
        local owners = read(lane, 'k', keys)
        for i, one in ipairs(keyed) do
            if owners[i] == one[2] then fields[#fields + 1] = 'k' .. one[1] end
        end
    end
    each('HDEL', lane.hash, fields, 1)
    unclaim(lane, gone)
    changed(lane)
end

local function bury(lane, places, states)
    forget(lane, places, states)
    lane.expired = lane.expired + #places
end

local function first_score(lane, band)
    local got = call('ZRANGEBYSCORE', lane.zset, band .. FIRST, band .. LAST, 'WITHSCORES', 'LIMIT', 0, 1)
    return got[2] and got[2] % BAND or FAR
end

local function sweep(lane, limit)
    if lane.ends > lane.now or limit <= 0 then return 0 end
    local members = call('ZRANGEBYSCORE', lane.zset, EXPIRY .. FIRST, EXPIRY .. digits(lane.now), 'LIMIT', 0, limit)
    local places = {}
    for i, member in ipairs(members) do places[i] = sub(member, 2) end
    bury(lane, places)
    lane.ends = first_score(lane, EXPIRY)
    changed(lane)
    return #members
end

-- Put back what lapsed or became due.
local function settle(lane, limit)
    if lane.due > lane.now or limit <= 0 then return 0 end
    local done = 0
    for _, band in ipairs({ HELD, DELAYED }) do
        local members = limit <= done and {}
            or call('ZRANGEBYSCORE', lane.zset, band .. FIRST, band .. digits(lane.now), 'LIMIT', 0, limit - done)
        local places, removed, added, gone = {}, {}, {}, {}
        for i, member in ipairs(members) do places[i] = sub(member, 2) end
        local states = read(lane, '', places)
        for i, place in ipairs(places) do
            removed[2 * i - 1], removed[2 * i] = members[i], 'u' .. place
            local state = states[i]
            if state then
                if expires_of(state) > lane.now then
                    added[#added + 1] = place
                    added[#added + 1] = place
                end
                local _, claim = hidden_of(state)
                if claim ~= NOBODY then note(gone, claim, place) end
            end
        end
        each('ZREM', lane.zset, removed, 1)
        each('ZADD', lane.zset, added, 2)
        unclaim(lane, gone)
        done = done + #members
    end
    lane.due = min(first_score(lane, HELD), first_score(lane, DELAYED))
    changed(lane)
    return done
end

-- What every operation does first: it sees what others added, and notes what has ended.
local function enter(lane)
    flush(lane)
    settle(lane, STEP)
    sweep(lane, STEP)
    return lane
end
