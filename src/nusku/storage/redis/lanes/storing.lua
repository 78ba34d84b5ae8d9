-- Adding messages.

-- A lane that is to get messages: an answer if it does not take them.
local function refusal(lane, number, registration)
    if not lane then return { STALE } end
    if lane.next + number > POSITIONS then return { USED_UP } end
    if full then return { FULL } end
    if number > 0 and not lane.registered and registration ~= lane.registration then
        return { REGISTER, 1, lane.registration }
    end
    return nil
end

-- The place of the live message with this key; a dead one makes room for the new.
local function present(lane, dedup)
    local place = lane.keys[dedup]
    if place then return place end
    place = call('HGET', lane.hash, 'k' .. dedup)
    if not place then return nil end
    local state = call('HGET', lane.hash, place)
    if alive(lane, state) then return place end
    bury(lane, { place }, { state })
    return nil
end

-- Append drafts, of which each is six elements of the list from `at` on (see rows.py), and put their
-- positions into the answer. This is what most calls are for, so what messages have in common is
-- made once.
local function append(lane, list, at, registration, answer)
    if not list[at] then return answer end
    registered(lane, registration)
    changed(lane)
    if not lane.fields then
        lane.fields, lane.scores, lane.keys, lane.ends_of, lane.times_of = {}, {}, {}, {}, {}
    end
    local fields, scores, ends_of, times_of, time =
        lane.fields, lane.scores, lane.ends_of, lane.times_of, lane.now
    local n, m, count = #fields, #scores, #answer
    for i = at, #list, 6 do
        local ttl, delay, rest, dedup = list[i], list[i + 1], list[i + 2], list[i + 4]
        local place = dedup and present(lane, dedup)
        local position
        if place then
            position = tonumber(place)
        else
            position, place = next_position(lane)
            local ends, times = ends_of[ttl], times_of[ttl]
            if not ends then
                local expires = time + ttl * 1000
                ends, times = EXPIRY .. digits(expires), pack(TIMES, time, expires, ttl)
                ends_of[ttl], times_of[ttl] = ends, times
                lane.ends = min(lane.ends, expires)
            end
            if list[i + 5] > 0 then times = pack(TIMES, list[i + 5], time + ttl * 1000, ttl) end
            if delay > 0 then
                local visible = time + delay * 1000
                local due = min(visible, time + ttl * 1000)
                rest = sub(rest, 1, 5) .. pack(HOLD, visible, 0, 0, NOBODY) .. sub(rest, 6)
                lane.due = min(lane.due, due)
                scores[m + 1], scores[m + 2] = HIDDEN .. place, 'u' .. place
                scores[m + 3], scores[m + 4] = DELAYED .. digits(due), 'd' .. place
                m = m + 4
            else
                scores[m + 1], scores[m + 2], m = place, place, m + 2
            end
            scores[m + 1], scores[m + 2], m = ends, 'e' .. place, m + 2
            fields[n + 1], fields[n + 2] = place, times .. rest
            fields[n + 3], fields[n + 4], n = 'b' .. place, list[i + 3], n + 4
            if dedup then
                fields[n + 1], fields[n + 2], n = 'k' .. dedup, place, n + 2
                lane.keys[dedup] = place
            end
        end
        count = count + 1
        answer[count] = position
    end
    return answer
end

-- Into one lane: generation, version, registration, drafts.
function operations.post(numbers_, one)
    local lane = current(numbers_[1], one[2], one[3])
    return refusal(lane, (#one - 4) / 6, one[4]) or append(lane, one, 5, one[4], { OK })
end

-- Into several, all or nothing: for each the same in a list of its own.
function operations.add(numbers_, one)
    local missing = { REGISTER }
    for i = 2, #one do
        local lane = current(numbers_[i - 1], one[i][1], one[i][2])
        local refused = refusal(lane, (#one[i] - 3) / 6, one[i][3])
        if refused and refused[1] ~= REGISTER then return refused end
        if refused then
            missing[#missing + 1] = i - 1
            missing[#missing + 1] = refused[3]
        end
    end
    if #missing > 1 then return missing end
    local answer = { OK }
    for i = 2, #one do
        answer[i] = append(lanes[numbers_[i - 1]], one[i], 4, one[i][3], {})
    end
    return answer
end
