import { ChatPage } from '../../../../components/chat-page.tsx';

export const metadata = { title: 'Session' };

export default async function Page({ params }: { params: Promise<{ id: string }> }) {
  const { id } = await params;
  return <ChatPage key={id} id={id} />;
}
