import { AppError, type Model } from '@holdfast/contracts';
import { z } from 'zod';

const BELIEVE_MS = 30_000;
const ASK_MS = 3_000;
/** The last second that a Date holds. */
const MAX_SECONDS = 8.64e12;
const answerSchema = z.object({
  data: z.array(z.object({ id: z.string(), created: z.number().min(0).max(MAX_SECONDS).nullish() })).max(10_000),
});

function modelOf(id: string, created: number): Model {
  return {
    id,
    type: 'model',
    display_name: id,
    created_at: new Date(created * 1000).toISOString(),
    lifecycle: 'active',
    allowed_fallback_models: null,
    capabilities: null,
    deprecated_at: null,
    line: null,
    max_input_tokens: null,
    max_tokens: null,
    retires_at: null,
  };
}

interface Known {
  /** Without wildcards, which are no models. */
  readonly models: readonly Model[];
  /** Whether the gateway also takes models that it does not list. */
  readonly wildcard: boolean;
  readonly untilMs: number;
}

/** The models that the model gateway lists, believed for half a minute. */
export class ModelCatalogue {
  readonly #url: string;
  readonly #apiKey: string;
  #known: Known | null = null;

  constructor(options: { baseUrl: string; apiKey: string }) {
    // Unless it is asked for them, LiteLLM hides its wildcards behind the models that it knows to fit.
    this.#url = `${options.baseUrl.replace(/\/+$/, '').replace(/\/v1$/, '')}/v1/models?return_wildcard_routes=true`;
    this.#apiKey = options.apiKey;
  }

  /** @throws AppError `model.gateway-unavailable` when it cannot be asked. */
  async list(): Promise<readonly Model[]> {
    return (await this.#ask()).models;
  }

  async #ask(): Promise<Known> {
    if (this.#known !== null && this.#known.untilMs > Date.now()) return this.#known;
    try {
      const response = await fetch(this.#url, {
        headers: this.#apiKey === '' ? {} : { authorization: `Bearer ${this.#apiKey}` },
        signal: AbortSignal.timeout(ASK_MS),
      });
      if (!response.ok)
        throw new AppError(
          'unavailable',
          'model.gateway-unavailable',
          `The model gateway answered HTTP ${response.status}.`,
        );
      const { data } = answerSchema.parse(await response.json());
      const models = data.filter(({ id }) => !id.includes('*'));
      this.#known = {
        models: models.map(({ id, created }) => modelOf(id, created ?? 0)),
        wildcard: models.length < data.length,
        untilMs: Date.now() + BELIEVE_MS,
      };
      return this.#known;
    } catch (cause) {
      if (cause instanceof AppError) throw cause;
      throw new AppError(
        'unavailable',
        'model.gateway-unavailable',
        'The model gateway could not be asked for its models.',
        { cause },
      );
    }
  }

  /**
   * Refuses a model that the gateway does not list, where it could be asked and lists no wildcard; else the turn tells.
   * @throws AppError `model.unknown`, which names those it has.
   */
  async require(id: string | undefined): Promise<void> {
    if (id === undefined) return;
    const known = await this.#ask().catch(() => null);
    if (known === null || known.wildcard) return;
    const names = known.models.map((model) => model.id);
    if (names.includes(id)) return;
    const shown = names.slice(0, 20).join(', ') + (names.length > 20 ? `, and ${names.length - 20} more` : '');
    throw new AppError(
      'invalid',
      'model.unknown',
      `The model gateway has no model "${id.slice(0, 256)}". It has: ${shown || 'none'}.`,
    );
  }
}
