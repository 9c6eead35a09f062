// Random layers through every level, for the sanitizers: every buffer is exactly as long as the kernels may touch.

#include "kernels.cpp"

#include <cstdio>
#include <random>
#include <vector>

int main() {
    std::mt19937 random(7);
    const auto draw = [&](long low, long high) { return std::uniform_int_distribution<long>(low, high)(random); };
    std::normal_distribution<float> normal(0.0f, 0.3f);
    const auto floats = [&](long count) {
        std::vector<float> values(count);
        for (float& value : values) value = normal(random);
        return values;
    };
    const long gates_of[] = {1, 1, 4, 3, 3};
    int passes = 0;
    for (int wanted = 0; wanted <= headwater_best_level(); ++wanted) {
        headwater_use_level(wanted);
        for (int round = 0; round < 60; ++round, ++passes) {
            // Now and then more than a block of the inner dimension or of the steps.
            const bool deep = round % 6 == 0;
            const long rows = draw(1, 30), time = draw(1, deep ? 40 : 9), cell = draw(0, 4);
            const long D = deep ? draw(500, 1100) : draw(1, 40), H = deep ? draw(120, 270) : draw(1, 40);
            const long G = gates_of[cell] * H;
            std::vector<long> lengths(rows), order(rows), counts(time), last(rows);
            long total = 0;
            for (long& length : lengths) total += length = draw(1, time);
            std::vector<long> place(rows * time), row(rows * time), mirror(rows * time);
            if (headwater_plan(lengths.data(), rows, time, order.data(), counts.data(), place.data(), row.data(),
                               mirror.data(), last.data()) != total)
                return 1;
            long steps = 0;
            while (steps < time && counts[steps]) ++steps;
            auto x = floats(total * D), wi = floats(G * D), wh = floats(G * H), bi = floats(G), bh = floats(G);
            auto h0 = floats(rows * H), c0 = floats(rows * H), a = floats(total * G), y = floats(total * H);
            auto c = floats(total * H), extra = floats(total * H), dy = floats(total * H), da = floats(total * G);
            auto dextra = floats(total * H), dx = floats(total * D), dwi = floats(G * D), dwh = floats(G * H);
            auto dbi = floats(G), dbh = floats(G), dh0 = floats(rows * H), dc0 = floats(rows * H);
            const bool lstm = cell == LSTM, start = draw(0, 1), all = draw(0, 1);
            const long half = wanted == AVX512_BF16 ? draw(0, 1) : 0;
            const Layer layer{cell, gates_of[cell], D, H, steps, half, counts.data(), x.data(), wi.data(), wh.data(),
                              bi.data(), bh.data(), start ? h0.data() : nullptr, start ? c0.data() : nullptr, a.data(),
                              y.data(), lstm ? c.data() : nullptr, cell == GRU ? extra.data() : nullptr};
            const Gradients gradients{draw(0, 1) ? dy.data() : nullptr, lstm && draw(0, 1) ? dy.data() : nullptr, da.data(),
                                      cell == GRU ? dextra.data() : nullptr, all ? dx.data() : nullptr,
                                      all ? dwi.data() : nullptr, dwh.data(), dbi.data(), all ? dbh.data() : nullptr,
                                      all ? dh0.data() : nullptr, all && lstm ? dc0.data() : nullptr};
            if (headwater_forward(&layer) || headwater_backward(&layer, &gradients)) return 1;
            auto left = floats(total * D), right = floats(total * H), out = floats(D * H);
            if (headwater_product(D, H, total, left.data(), 1, D, right.data(), H, 1, out.data(), half, 1)) return 1;
            const long classes = draw(1, 50), across = (rows + 15) / 16 * 16;
            std::vector<long> targets(rows);
            for (long& target : targets) target = draw(0, classes - 1);
            auto inputs = floats(rows * D), weight = floats(classes * D), bias = floats(classes);
            auto gradient = floats(classes * across);
            double loss = 0.0;
            if (headwater_linear_cross_entropy(rows, D, classes, across, inputs.data(), weight.data(),
                                               all ? bias.data() : nullptr, targets.data(), gradient.data(), &loss, half))
                return 1;
            const long forward = draw(0, 1) ? H : H / 2, stride = 3 * H;
            auto pooled = floats(rows * stride), ties = floats(rows * H), dpooled = floats(rows * stride);
            const bool last_too = draw(0, 1), mean_too = draw(0, 1), most_too = draw(0, 1);
            float* parts[] = {last_too ? pooled.data() : nullptr, most_too ? pooled.data() + H : nullptr,
                              mean_too ? pooled.data() + 2 * H : nullptr};
            if (headwater_pool(H, forward, steps, counts.data(), order.data(), y.data(), parts[0], parts[1], parts[2],
                               stride, ties.data()))
                return 1;
            if (headwater_pool_backward(H, forward, steps, counts.data(), order.data(), y.data(), parts[1], ties.data(),
                                        last_too ? dpooled.data() : nullptr, most_too ? dpooled.data() + H : nullptr,
                                        mean_too ? dpooled.data() + 2 * H : nullptr, stride, dy.data()))
                return 1;
            const long layers = draw(1, 3);
            std::vector<std::vector<float>> packed, memory;
            std::vector<StepLayer> stack;
            for (long n = 0; n < layers; ++n) {
                const long read = n ? H : D;
                auto first = floats(G * read);
                packed.push_back(floats(headwater_step_floats(cell, read, H)));
                memory.emplace_back(4 * ((H + 15) / 16 * 16));
                headwater_pack_step(cell, read, H, first.data(), wh.data(), bi.data(), bh.data(), packed[n].data());
                stack.push_back({cell, read, H, packed[n].data(), memory[n].data()});
            }
            std::vector<float> in = floats(D), state(H);
            for (long t = 0; t < 3; ++t) headwater_step(stack.data(), layers, in.data(), state.data());
        }
    }
    std::printf("%d passes\n", passes);
}
