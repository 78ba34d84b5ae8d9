-- States of messages; see STATE in constants.lua.

local function expires_of(state)
    return (unpack_('>I8', state, 9))
end

local function flags_of(state)
    return string.byte(state, 25)
end

-- When it is visible, and the claim (or NOBODY) that hides it or did.
local function hidden_of(state)
    if flags_of(state) % 2 == 0 then return 0, NOBODY end
    return (unpack_('>I8', state, 26)), sub(state, 46, 77)
end

local function rest_of(state)
    return sub(state, flags_of(state) % 2 == 1 and 78 or 26)
end

local function client_of(state)
    local rest = flags_of(state) % 2 == 1 and 78 or 26
    return sub(state, rest + 2, rest + 1 + unpack_('>I2', state, rest))
end

-- The dedup key, and where in the rest it and the attributes begin.
local function dedup_of(state, rest)
    local at = 3 + unpack_('>I2', rest)
    if flags_of(state) % 8 < 4 then return nil, at, at end
    local length = unpack_('>I2', rest, at)
    return sub(rest, at + 2, at + 1 + length), at, at + 2 + length
end

local function has_attributes(flags)
    return flags % 4 >= 2
end

local function alive(lane, state)
    return state and expires_of(state) > lane.now
end

-- A state with another hold (nil: none), expiry and ttl.
local function restated(state, hold, expires, ttl, count)
    local posted, old_expires, old_ttl, old_count, flags = unpack_(STATE, state)
    return pack(STATE, posted, expires or old_expires, ttl or old_ttl, count or old_count,
        flags - flags % 2 + (hold and 1 or 0)) .. (hold or '') .. rest_of(state)
end

local function with_attributes(state, attributes)
    local rest, flags = rest_of(state), flags_of(state)
    local _, _, at = dedup_of(state, rest)
    local head = #state - #rest
    return sub(state, 1, 24) .. string.char(has_attributes(flags) and flags or flags + 2)
        .. sub(state, 26, head) .. sub(rest, 1, at - 1) .. attributes
end

local function without_dedup(state)
    local rest, flags = rest_of(state), flags_of(state)
    local dedup, from, to = dedup_of(state, rest)
    if not dedup then return state end
    return sub(state, 1, 24) .. string.char(flags - 4) .. sub(state, 26, #state - #rest)
        .. sub(rest, 1, from - 1) .. sub(rest, to)
end
