import { z } from 'zod';
import { chatCompletions } from './chat-completions.ts';
import { gatewayRoot, type ModelManner } from './gateway.ts';
import { messages } from './messages.ts';

const BELIEVE_MS = 5 * 60_000;
const ASK_AGAIN_MS = 15_000;
const ASK_MS = 3_000;

const answerSchema = z.object({
  data: z.array(
    z.object({
      model_name: z.string(),
      litellm_params: z.object({ model: z.string().nullish(), custom_llm_provider: z.string().nullish() }).nullish(),
      model_info: z
        .object({ supports_reasoning: z.boolean().nullish(), supports_adaptive_thinking: z.boolean().nullish() })
        .nullish(),
    }),
  ),
});
type Entry = z.infer<typeof answerSchema>['data'][number];

function isAnthropic({ litellm_params: params }: Entry): boolean {
  return (params?.custom_llm_provider ?? params?.model?.split('/')[0]) === 'anthropic';
}
function reasons({ model_info: info }: Entry): boolean {
  return info?.supports_reasoning === true || info?.supports_adaptive_thinking === true;
}

/** True when one of the patterns is the name; `*` stands for any text. */
function matches(patterns: readonly string[], name: string): boolean {
  return patterns.some((pattern) => {
    const [head = '', ...rest] = pattern.split('*');
    if (rest.length === 0) return head === name;
    const tail = rest.pop() ?? '';
    if (!name.startsWith(head) || !name.endsWith(tail) || name.length < head.length + tail.length) return false;
    let at = head.length;
    const end = name.length - tail.length;
    return rest.every((part) => {
      const found = name.indexOf(part, at);
      at = found + part.length;
      return found !== -1 && at <= end;
    });
  });
}

/**
 * Which dialect each model is spoken to in, and whether it can be asked to think: what `GET /v1/model/info` of the
 * gateway says, believed for five minutes. A gateway that does not answer it gets chat completions.
 */
export class ModelInfo {
  readonly #url: string;
  readonly #apiKey: string;
  readonly #messagesModels: readonly string[] | 'auto';
  #known: { readonly entries: readonly Entry[]; readonly untilMs: number } = { entries: [], untilMs: 0 };
  readonly #onError: (error: unknown) => void;
  #asking: Promise<void> | null = null;

  /**
   * @param options.messagesModels the models that are spoken to in the messages dialect, comma-separated, `*` for any
   * text; `auto`: those whose every deployment is of the provider `anthropic`
   */
  constructor(options: {
    baseUrl: string;
    apiKey: string;
    messagesModels: string;
    onError: (error: unknown) => void;
  }) {
    this.#url = `${gatewayRoot(options.baseUrl)}/v1/model/info`;
    this.#apiKey = options.apiKey;
    this.#onError = options.onError;
    const listed = options.messagesModels.trim();
    this.#messagesModels =
      listed === 'auto'
        ? listed
        : listed
            .split(',')
            .map((name) => name.trim())
            .filter((name) => name !== '');
  }

  async mannerOf(model: string): Promise<ModelManner> {
    if (this.#known.untilMs < Date.now()) {
      this.#asking ??= this.#ask().finally(() => {
        this.#asking = null;
      });
      // What was known goes on to count while it is asked anew.
      if (this.#known.untilMs === 0) await this.#asking;
    }
    const { entries } = this.#known;
    const exact = entries.filter((entry) => entry.model_name === model);
    const found = exact.length > 0 ? exact : entries.filter((entry) => matches([entry.model_name], model));
    const listed = this.#messagesModels;
    const speaksMessages = listed === 'auto' ? found.length > 0 && found.every(isAnthropic) : matches(listed, model);
    return {
      dialect: speaksMessages ? messages : chatCompletions,
      reasons: found.length > 0 && found.every(reasons),
    };
  }

  /** Throws nothing: what was known stays, and the gateway is asked again soon. */
  async #ask(): Promise<void> {
    try {
      const response = await fetch(this.#url, {
        headers: this.#apiKey === '' ? {} : { authorization: `Bearer ${this.#apiKey}` },
        signal: AbortSignal.timeout(ASK_MS),
      });
      // A gateway without the route has nothing to say of its models.
      if (!response.ok && response.status !== 404) throw new Error(`HTTP ${response.status} of ${this.#url}`);
      const entries = response.ok ? answerSchema.parse(await response.json()).data : [];
      this.#known = { entries, untilMs: Date.now() + BELIEVE_MS };
    } catch (error) {
      this.#onError(error);
      this.#known = { entries: this.#known.entries, untilMs: Date.now() + ASK_AGAIN_MS };
    }
  }
}
