-- The batch

local batch = cmsgpack.unpack(ARGV[3])

-- Is there room? A script that has written may go on without any, so this comes first. It changes
-- nothing, since a lane that is there has a head.
for i = 2, #batch, 2 do
    local name = batch[i][1]
    if name == 'post' or name == 'add' or name == 'load' then
        local lane = open_lane(batch[i - 1][1])
        if lane then
            full = not room(redis.pcall('HSETNX', lane.hash, 'l', ''))
            break
        end
    end
end

local answers = { {} }
for i = 1, #batch, 2 do
    local one = batch[i + 1]
    local name = one[1]
    if name == 'post' or name == 'add' then
        answers[#answers + 1] = operations[name](batch[i], one)
    else
        answers[#answers + 1] = (operations[name] or rare()[name])(batch[i], unpack(one, 2, 10))
    end
end
for number, lane in pairs(lanes) do
    if lane then
        flush(lane)
        if lane.dirty then write_head(lane) end
        if lane.expired > 0 then
            answers[1][#answers[1] + 1] = number
            answers[1][#answers[1] + 1] = lane.expired
        end
    end
end
return answers
