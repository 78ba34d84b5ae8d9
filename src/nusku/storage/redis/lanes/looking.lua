-- Finding messages.

-- Up to `want` places behind a position, of free messages, or with `all` of any.
local function following(lane, position, want, all)
    local found, from = {}, digits(position + 1)
    local members = call('ZRANGEBYSCORE', lane.zset, FREE .. from, FREE .. LAST, 'LIMIT', 0, want)
    local others = all
        and call('ZRANGEBYSCORE', lane.zset, HIDDEN .. from, HIDDEN .. LAST, 'LIMIT', 0, want) or {}
    local i, j = 1, 1
    while #found < want do
        local a, b = members[i], others[j]
        if not a and not b then break end
        if b and (not a or sub(b, 2) < a) then
            found[#found + 1], j = sub(b, 2), j + 1
        else
            found[#found + 1], i = a, i + 1
        end
    end
    return found
end

local function put(answer, lane, places, states, bodies)
    local blobs = bodies and read(lane, 'b', places)
    for i, place in ipairs(places) do
        local n = #answer
        answer[n + 1], answer[n + 2], answer[n + 3] = tonumber(place), states[i], blobs and blobs[i] or ''
    end
    return answer
end

local function valid(lane, positions)
    local places, seen = {}, {}
    for _, position in ipairs(positions) do
        if position > 0 and position < lane.next then
            local place = digits(position)
            if not seen[place] then
                seen[place] = true
                places[#places + 1] = place
            end
        end
    end
    return places
end

-- What a claim holds (of these places); nothing when it is over.
local function held_by(lane, claim, positions)
    local list = call('HGET', lane.hash, 'c' .. claim)
    local places, states = {}, {}
    if not list then return places, states end
    local all, wanted = {}, nil
    if positions then
        wanted = {}
        for _, place in ipairs(valid(lane, positions)) do wanted[place] = true end
    end
    for at = 1, #list, 13 do
        local place = sub(list, at, at + 12)
        if not wanted or wanted[place] then all[#all + 1] = place end
    end
    table.sort(all)
    for i, state in ipairs(read(lane, '', all)) do
        if alive(lane, state) then
            local visible, holder = hidden_of(state)
            if holder == claim and visible > lane.now then
                places[#places + 1], states[#states + 1] = all[i], state
            end
        end
    end
    return places, states
end

-- The oldest free messages, and apart those claimed too often; nil when the step did not suffice.
local function free(lane, limit, max_count)
    local places, states, spent = {}, {}, {}
    local position, budget = 0, STEP + limit
    while #places < limit do
        local want = min(limit - #places, STEP)
        local found = following(lane, position, want, false)
        local dead, dead_states = {}, {}
        for i, state in ipairs(read(lane, '', found)) do
            local place = found[i]
            if not alive(lane, state) then
                dead[#dead + 1], dead_states[#dead_states + 1] = place, state
            elseif max_count and unpack_('>I4', state, 21) >= max_count then
                spent[#spent + 1] = tonumber(place)
            else
                places[#places + 1], states[#states + 1] = place, state
            end
        end
        bury(lane, dead, dead_states)
        if #found < want or #spent >= SPENT then break end
        position = tonumber(found[#found])
        budget = budget - #found
        if budget <= 0 and #places < limit then return nil end
    end
    if #places < limit and #spent < SPENT and lane.due <= lane.now then return nil end
    return places, states, spent
end

-- The state and place of the oldest (or newest) message that is alive; nil when it takes longer.
local function outermost(lane, newest)
    local budget = STEP
    while budget > 0 do
        local places = {}
        for _, band in ipairs({ FREE, HIDDEN }) do
            local got = newest
                and call('ZREVRANGEBYSCORE', lane.zset, band .. LAST, band .. FIRST, 'LIMIT', 0, 1)
                or call('ZRANGEBYSCORE', lane.zset, band .. FIRST, band .. LAST, 'LIMIT', 0, 1)
            if got[1] then places[#places + 1] = sub(got[1], -13) end
        end
        if #places == 0 then return false end
        table.sort(places)
        local place = newest and places[#places] or places[1]
        local state = call('HGET', lane.hash, place)
        if alive(lane, state) then return place, state end
        bury(lane, { place }, { state })
        budget = budget - 5
    end
    return nil
end

local function numbers(lane)
    local from = digits(lane.now + 1)
    local total = call('ZCOUNT', lane.zset, EXPIRY .. from, EXPIRY .. LAST)
    local held = call('ZCOUNT', lane.zset, HELD .. from, HELD .. LAST)
    local delayed = call('ZCOUNT', lane.zset, DELAYED .. from, DELAYED .. LAST)
    return total - held - delayed, held, delayed
end

local function due_of(lane)
    return lane.due < FAR and lane.due or 0
end
